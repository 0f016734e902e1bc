-- batch_forget: takes a batch that has ended away, with all that is known of it. Idempotent.
-- KEYS  1 batch  2 index of its tenant  3 bitmap of committed rows  4 list of parts      ARGV  1 id
-- Returns  'OK'   'BUSY' it has not ended
local status = redis.call('HGET', KEYS[1], 'status')
if status and status ~= 'completed' and status ~= 'failed' and status ~= 'expired' and status ~= 'cancelled' then
  return 'BUSY'
end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[2], ARGV[1])
return 'OK'
