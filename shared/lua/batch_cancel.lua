-- batch_cancel: an active batch -> cancelling; its driver sees it and ends it. Idempotent.
-- @include clock
-- KEYS  1 batch      ARGV  none
-- Returns  {'OK', status}      cancelling, or cancelled before; of one whose time is up, what it is
--          {'ENDED', status}   it has ended otherwise      {'GONE'}  no such batch
local v = redis.call('HMGET', KEYS[1], 'status', 'closing')
local status = v[1]
if not status then return {'GONE'} end
if status == 'completed' or status == 'failed' or status == 'expired' then return {'ENDED', status} end
if status == 'cancelled' or status == 'cancelling' or v[2] == 'expired' then return {'OK', status} end
redis.call('HSET', KEYS[1], 'status', 'cancelling', 'cancelling_at_ms', now_ms())
return {'OK', 'cancelling'}
