-- batch_take: a driver becomes the owner of a batch whose owner is gone. The owner's token is the fence of all its writes.
-- @include clock
-- KEYS  1 batch  2 active
-- ARGV  1 id  2 token of the driver (never used before)  3 lease (ms)
-- Returns  {'OK', epoch, record}   it is its own now, or was by this very call before; the record flat
--          {'HELD'}                another driver's lease lives
--          {'ENDED'}               nothing is left to do      {'GONE'}  no such batch
local v = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease_ms', 'epoch')
if not v[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'GONE'}
end
if v[1] == 'completed' or v[1] == 'failed' or v[1] == 'expired' or v[1] == 'cancelled' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'ENDED'}
end
local now, epoch = now_ms(), tonumber(v[4] or '0')
if v[2] ~= ARGV[2] then
  if tonumber(v[3] or '0') > now then return {'HELD'} end
  epoch = epoch + 1
end
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'epoch', epoch, 'lease_ms', string.format('%.0f', now + tonumber(ARGV[3])))
return {'OK', epoch, redis.call('HGETALL', KEYS[1])}
