-- batch_end: the owner ends a batch: its last status, its files, and the outbox entry, in one step. Idempotent.
-- @include clock
-- KEYS  1 batch  2 active  3 outbox
-- ARGV  1 id  2 token of the driver  3 completed, failed, expired or cancelled  4.. field, value
-- A batch that was to be cancelled meanwhile ends as cancelled, unless its time was up before.
-- Returns  {'OK', status}   ended so, now or by this very call before
--          {'FENCED'}       another driver owns or has ended it      {'GONE'}  no such batch
local v = redis.call('HMGET', KEYS[1], 'status', 'owner', 'closing', 'ended_by', 'tenant')
if not v[1] then return {'GONE'} end
if v[4] == ARGV[2] then return {'OK', v[1]} end
if v[2] ~= ARGV[2] then return {'FENCED'} end
local status = v[1] == 'cancelling' and v[3] ~= 'expired' and 'cancelled' or ARGV[3]
if #ARGV > 3 then redis.call('HSET', KEYS[1], unpack(ARGV, 4)) end
redis.call('HSET', KEYS[1], 'status', status, status .. '_at_ms', now_ms(), 'ended_by', ARGV[2])
redis.call('HDEL', KEYS[1], 'owner', 'lease_ms')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', '100000', '*', 'id', ARGV[1], 'status', status, 'tenant', v[5] or '')
return {'OK', status}
