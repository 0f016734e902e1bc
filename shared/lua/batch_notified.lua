-- batch_notified: settles what batch_notify has handed out. Idempotent.
-- @include clock
-- KEYS  1 batch  2 batches whose end is to be told  3 its secret
-- ARGV  1 id  2 attempts before this one  3 'delivered', 'failed', 'again', 'refused' (given up, no attempt was made),
--       'later' (no attempt was made), 'none' (nobody is to be told)  4 for again and later: in how long (ms)  5 the status that the receiver answered with, or ''
-- Returns  {'OK'}     written down, now or by this very call before
--          {'ENDED'}  it has been delivered or given up before      {'STALE'}  somebody else has tried meanwhile
--          {'GONE'}   no such batch, or one that has not ended: its end will come again
local v = redis.call('HMGET', KEYS[1], 'status', 'hook_attempts', 'hook_state')
local status = v[1]
if status ~= 'completed' and status ~= 'failed' and status ~= 'expired' and status ~= 'cancelled' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  if not status then redis.call('DEL', KEYS[3]) end
  return {'GONE'}
end
local outcome, now = ARGV[3], now_ms()
if v[3] == 'delivered' or v[3] == 'failed' or outcome == 'none' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('DEL', KEYS[3])
  if outcome == 'none' then return {'OK'} end
  return {'ENDED'}
end
if outcome == 'later' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[4]), ARGV[1])
  return {'OK'}
end
if outcome == 'refused' then
  redis.call('HSET', KEYS[1], 'hook_state', 'failed', 'hook_failed_at_ms', now)
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('DEL', KEYS[3])
  return {'OK'}
end
local before = tonumber(v[2] or '0')
if before ~= tonumber(ARGV[2]) and outcome ~= 'delivered' then return {'STALE'} end
redis.call('HSET', KEYS[1], 'hook_attempts', math.max(before, ARGV[2] + 1), 'hook_at_ms', now, 'hook_status', ARGV[5])
if outcome == 'again' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[4]), ARGV[1])
else
  redis.call('HSET', KEYS[1], 'hook_state', outcome)
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('DEL', KEYS[3])
end
return {'OK'}
