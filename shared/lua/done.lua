-- done: running -> a terminal state, by the owner of the attempt. Retried until it answers.
-- @include clock dead_letter finish
-- KEYS  1 run  2 rec  3 body  4 log  5 chan  6 tenants  7 deadlines  8 fin  9 dlq  10 output
-- ARGV  1 rid  2 attempt id  3 state  4 reason  5 terminal frame  6 result TTL (ms)  7 log length expected (bytes)
--       8 prompt tokens  9 completion tokens  10 worker id  11 '1' = keep it as a dead letter
--       12 sequences that were generated
-- Returns  {'OK'}         ended, or was ended by this very call before
--          {'GAP', len}   the length guard failed: re-send from len, then call again
--          {'FENCED'}     another attempt owns the request, or it ended otherwise
-- Cost: about 17 us.
local v = redis.call('HMGET', KEYS[2], 'state', 'attempt', 'last_attempt', 'cancel', 'tenant')
if v[1] == 'running' and v[2] == ARGV[2] then
  local log_len = redis.call('STRLEN', KEYS[4])
  if log_len ~= tonumber(ARGV[7]) then return {'GAP', log_len} end
end
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
if v[1] ~= 'running' or v[2] ~= ARGV[2] then
  if v[1] == ARGV[3] and v[3] == ARGV[2] then return {'OK'} end
  return {'FENCED'}
end
redis.call('HSET', KEYS[2], 'last_attempt', ARGV[2], 'prompt_tokens', ARGV[8], 'completion_tokens', ARGV[9])
if ARGV[11] == '1' then
  remember(KEYS[2], ARGV[4], ARGV[10], ARGV[2])
  dead_letter(KEYS[9], ARGV[1], KEYS[2], KEYS[3], ARGV[4])
end
-- how long each sequence of a tenant's answers is: admit expects that of its next ones; for so many tenants, and no more
if ARGV[3] == 'succeeded' and tonumber(ARGV[9]) > 0 then
  local field = 't:' .. (v[5] or '')
  local mean = redis.call('HMGET', KEYS[10], field, 'pool')
  local each = ARGV[9] / ARGV[12]
  local function moved(old) return string.format('%.1f', old and old + 0.1 * (each - old) or each) end
  redis.call('HSET', KEYS[10], 'pool', moved(mean[2]))
  if mean[1] or redis.call('HLEN', KEYS[10]) < 10000 then redis.call('HSET', KEYS[10], field, moved(mean[1])) end
end
-- the worker knows that it was cancelled, the record knows why
local reason = ARGV[3] == 'cancelled' and v[4] or ARGV[4]
local k = {rec = KEYS[2], body = KEYS[3], log = KEYS[4], chan = KEYS[5], tenants = KEYS[6], deadlines = KEYS[7], fin = KEYS[8]}
finish(k, ARGV[1], ARGV[3], reason, ARGV[5], ARGV[6])
return {'OK'}
