-- batch_keep: the owner renews its lease, writes facts, and moves the batch on. Idempotent.
-- @include clock
-- KEYS  1 batch
-- ARGV  1 token of the driver  2 lease (ms, 0 = give it back)  3 from, 4 to: statuses ('' = no move)  5.. field, value
-- Returns  {'OK', status, now}   done      {'OTHER', status, now}  it is not in `from`: only the lease was renewed
--          {'FENCED'}            another driver owns it      {'GONE'}  no such batch
local v = redis.call('HMGET', KEYS[1], 'status', 'owner')
if not v[1] then return {'GONE'} end
if v[2] ~= ARGV[1] then return {'FENCED'} end
local now, lease = now_ms(), tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'lease_ms', lease > 0 and string.format('%.0f', now + lease) or '0')
if ARGV[3] ~= '' then
  if v[1] == ARGV[4] then return {'OK', v[1], now} end
  if v[1] ~= ARGV[3] then return {'OTHER', v[1], now} end
  redis.call('HSET', KEYS[1], 'status', ARGV[4], ARGV[4] .. '_at_ms', now)
  v[1] = ARGV[4]
end
if #ARGV > 4 then redis.call('HSET', KEYS[1], unpack(ARGV, 5)) end
return {'OK', v[1], now}
