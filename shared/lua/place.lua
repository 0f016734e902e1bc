-- place: where a queued request stands, and why it waits. Reads only.
-- @include clock rate
-- KEYS  1 rec  2 queue of its lane  3 fair  4 sched  5 lanes  6 workers      ARGV  1 lane
-- Returns  {'QUEUED', position, depth, eta_ms, reason}   position: 1 is next; 0 = it is being taken
--                                                        eta_ms: until it starts, -1 = not known
--          {'OTHER'}                                     it is not queued
-- Reasons: no_worker, lane_paused, retrying (it had started; it goes first in its lane, paused or not), suspect (in
-- quarantine), busy (others go first).
-- The position is that of its lane, in the order in which the tenants' shares let it go; newcomers may still go before it.
-- Cost: about 8 us.
local v = redis.call('HMGET', KEYS[1], 'state', 'queue', 'entry', 'claims')
if v[1] ~= 'queued' then return {'OTHER'} end
local alone = redis.call('HLEN', KEYS[6]) == 0
if v[2] == 'quarantine' then return {'QUEUED', 1, 1, -1, 'suspect'} end
local rank = redis.call('ZRANK', KEYS[3], v[3])
local position = rank and rank + 1 or 0
local depth = redis.call('XLEN', KEYS[2])
if alone then return {'QUEUED', position, depth, -1, 'no_worker'} end
local again = tonumber(v[4] or '0') > 0
if redis.call('HGET', KEYS[5], ARGV[1] .. '.paused') == '1' then
  return {'QUEUED', position, depth, -1, again and 'retrying' or 'lane_paused'}
end
local rate = drain_rate(redis.call('HGET', KEYS[4], 'rate:' .. ARGV[1]))
return {'QUEUED', position, depth, rate and math.ceil(1000 * position / rate) or -1, again and 'retrying' or 'busy'}
