-- beat: renews a worker's lease and reads its box.
-- @include lease
-- KEYS  1 lease  2 dead  3 box      ARGV  1 lease (ms)
-- Returns  up to 64 control messages (removed by `ackbox` only).   Error 'FENCED' when the worker is condemned.
if not renew(KEYS[1], KEYS[2], ARGV[1]) then return redis.error_reply('FENCED') end
return redis.call('LRANGE', KEYS[3], 0, 63)
