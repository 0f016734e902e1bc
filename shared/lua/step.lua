-- step: one flush of a worker. Appends each sequence's frame to its log and publishes it; renews the lease; reads the box.
-- @include finish clock lease
-- KEYS  1 lease  2 dead  3 box  then per sequence: rec, log, chan
-- ARGV  1 lease (ms)  then per sequence: attempt id, log length expected (bytes), frame
-- Returns  {refused, unheard, box}
--   refused  flat list: position (1-based), log length; length -1 = fenced (another attempt owns it, or it is terminal),
--            otherwise the length guard failed: the log is not where the worker thinks (a failover rolled it back)
--   unheard  positions whose channel had no listener
--   box      up to 64 control messages; they are removed by `ackbox` only, once the worker has them
-- Error 'FENCED' when the worker is condemned.
-- A blind retry is harmless: a frame that is already the log's tail is published again, not appended again.
-- Cost: about 2 us a sequence.
if not renew(KEYS[1], KEYS[2], ARGV[1]) then return redis.error_reply('FENCED') end
local refused, unheard = {}, {}
for i = 1, (#KEYS - 3) / 3 do
  local rec, log, chan = KEYS[3 * i + 1], KEYS[3 * i + 2], KEYS[3 * i + 3]
  local attempt, expected, frame = ARGV[3 * i - 1], tonumber(ARGV[3 * i]), ARGV[3 * i + 1]
  if redis.call('HGET', rec, 'attempt') == attempt then
    local log_len = redis.call('STRLEN', log)
    if log_len == expected then
      log_len = redis.call('APPEND', log, frame)
    elseif log_len ~= expected + #frame then
      refused[#refused + 1] = i
      refused[#refused + 1] = log_len
      log_len = nil
    end
    if log_len and publish(chan, log_len, frame) == 0 then unheard[#unheard + 1] = i end
  else
    refused[#refused + 1] = i
    refused[#refused + 1] = -1
  end
end
return {refused, unheard, redis.call('LRANGE', KEYS[3], 0, 63)}
