-- step: one flush of a worker. Appends each sequence's frame to its log and publishes it; renews the lease; reads the box.
-- @include finish clock lease
-- KEYS  1 lease  2 dead  3 box  4 run  then per sequence: log, chan
-- ARGV  1 lease (ms)  then per sequence: rid, attempt id, log length expected (bytes), frame
-- Returns  {refused, box}
--   refused  flat list: position (1-based), log length; length -1 = fenced (another attempt owns it, or it is terminal),
--            otherwise the length guard failed: the log is not where the worker thinks (a failover rolled it back)
--   box      up to 64 control messages; they are removed by `ackbox` only, once the worker has them
-- Error 'FENCED' when the worker is condemned.
-- The fence is the worker's own run set, read once for all sequences: claim, requeue and done change it in the same
-- step as the record. The guard costs no command of its own: APPEND answers with the length, and a frame that landed
-- in the wrong place is taken back before anyone sees it.
-- A blind retry is harmless: a frame that is already the log's tail is published again, not appended again.
-- Cost: about 2 us a sequence.
if not renew(KEYS[1], KEYS[2], ARGV[1]) then return redis.error_reply('FENCED') end
local refused, rids = {}, {}
local sequences = (#KEYS - 4) / 2
for i = 1, sequences do rids[i] = ARGV[4 * i - 2] end
local owned = redis.call('HMGET', KEYS[4], unpack(rids))
for i = 1, sequences do
  local log, frame = KEYS[2 * i + 3], ARGV[4 * i + 1]
  if owned[i] == ARGV[4 * i - 1] then
    local wanted = tonumber(ARGV[4 * i]) + #frame
    local log_len = redis.call('APPEND', log, frame)
    if log_len ~= wanted then
      log_len = log_len - #frame
      redis.call('SET', log, log_len > 0 and redis.call('GETRANGE', log, 0, log_len - 1) or '')
    end
    if log_len ~= wanted then
      refused[#refused + 1] = i
      refused[#refused + 1] = log_len
    else
      publish(KEYS[2 * i + 4], log_len, frame)
    end
  else
    refused[#refused + 1] = i
    refused[#refused + 1] = -1
  end
end
return {refused, redis.call('LRANGE', KEYS[3], 0, 63)}
