-- batch_commit: the owner makes a part of the output count: its rows' bits, counts and usage, in one step. All or nothing.
-- @include clock
-- KEYS  1 batch  2 bitmap of committed rows  3 list of parts
-- ARGV  1 token of the driver  2 lease (ms)  3 name of the part  4 the part's entry in the list, which begins with its name
--       5 its rows: msgpack list of numbers  6.. field, by how much it grows
-- Returns  {'OK', status}     it counts, now or by this very call before
--          {'TAKEN', row}     a row counts already: nothing of the part does
--          {'CLOSED', status}  the batch takes no more rows
--          {'FENCED'}         another driver owns it      {'GONE'}  no such batch
local v = redis.call('HMGET', KEYS[1], 'status', 'owner')
if not v[1] then return {'GONE'} end
if v[2] ~= ARGV[1] then return {'FENCED'} end
local last = redis.call('LINDEX', KEYS[3], -1)
if last and last:sub(1, #ARGV[3] + 1) == ARGV[3] .. ' ' then return {'OK', v[1]} end
if v[1] ~= 'in_progress' and v[1] ~= 'cancelling' then return {'CLOSED', v[1]} end
local rows = cmsgpack.unpack(ARGV[5])
for i = 1, #rows do
  if redis.call('GETBIT', KEYS[2], rows[i]) == 1 then return {'TAKEN', rows[i]} end
end
for i = 1, #rows do redis.call('SETBIT', KEYS[2], rows[i], 1) end
redis.call('RPUSH', KEYS[3], ARGV[4])
for i = 6, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'lease_ms', string.format('%.0f', now_ms() + tonumber(ARGV[2])))
return {'OK', v[1]}
