-- batch_notify: takes over what the outbox says anew, and hands out what is due to be told by webhook. Its taker has it
-- for a while; what it does not settle by then is handed out again. Safe to send twice: what a lost answer named comes again.
-- @include clock
-- KEYS  1 outbox of batches that have ended  2 how far it was read  3 batches whose end is to be told, by when
-- ARGV  1 for how long the taker has them (ms)  2 most that it takes  3 most entries that are read
-- Returns  {how many are to be told, now or later, id, ...}
local now = now_ms()
local read = redis.call('XRANGE', KEYS[1], '(' .. (redis.call('GET', KEYS[2]) or '0-0'), '+', 'COUNT', ARGV[3])
for i = 1, #read do
  local fields = read[i][2]
  for f = 1, #fields, 2 do
    if fields[f] == 'id' then redis.call('ZADD', KEYS[3], 'NX', now, fields[f + 1]) end
  end
end
if #read > 0 then redis.call('SET', KEYS[2], read[#read][1]) end
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[2])
local answer = {redis.call('ZCARD', KEYS[3])}
for i = 1, #due do
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.0f', now + ARGV[1]), due[i])
  answer[#answer + 1] = due[i]
end
return answer
