-- batch_trim: takes away what is known of the parts of a batch that has ended, once they are not kept any more. Idempotent.
-- KEYS  1 batch  2 bitmap of committed rows  3 list of parts      ARGV  none
-- Returns  'OK'   'BUSY' it has not ended   'GONE' no such batch
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'GONE' end
if status ~= 'completed' and status ~= 'failed' and status ~= 'expired' and status ~= 'cancelled' then return 'BUSY' end
redis.call('HSET', KEYS[1], 'parts_gone', '1')
redis.call('DEL', KEYS[2], KEYS[3])
return 'OK'
