-- place: where a queued request stands, and why it waits. Reads only.
-- @include clock rate
-- KEYS  1 rec  2 queue of its lane  3 fair  4 retry queue  5 sched  6 lanes  7 workers      ARGV  1 lane
-- Returns  {'QUEUED', position, depth, eta_ms, reason}   position: 1 is next; 0 = it is being taken; 100 in the retry queue
--                                                        stands for more, too; eta_ms: until it starts, -1 = not known
--          {'OTHER'}                                     it is not queued
-- Reasons: no_worker, lane_paused, retrying (its worker died, it goes first), suspect (in quarantine), busy (others go first).
-- The position is that of its lane, in the order in which the tenants' shares let it go; newcomers may still go before it.
-- Cost: about 8 us.
local v = redis.call('HMGET', KEYS[1], 'state', 'queue', 'entry')
if v[1] ~= 'queued' then return {'OTHER'} end
local alone = redis.call('HLEN', KEYS[7]) == 0
if v[2] == 'quarantine' then return {'QUEUED', 1, 1, -1, 'suspect'} end
if v[2] == 'retry' then
  local ahead = #redis.call('XRANGE', KEYS[4], '-', v[3], 'COUNT', 100)
  return {'QUEUED', ahead, redis.call('XLEN', KEYS[4]), -1, alone and 'no_worker' or 'retrying'}
end
local rank = redis.call('ZRANK', KEYS[3], v[3])
local position = rank and rank + 1 or 0
local depth = redis.call('XLEN', KEYS[2])
if alone then return {'QUEUED', position, depth, -1, 'no_worker'} end
if redis.call('HGET', KEYS[6], ARGV[1] .. '.paused') == '1' then return {'QUEUED', position, depth, -1, 'lane_paused'} end
local rate = drain_rate(redis.call('HGET', KEYS[5], 'rate:' .. ARGV[1]))
return {'QUEUED', position, depth, rate and math.ceil(1000 * position / rate) or -1, 'busy'}
