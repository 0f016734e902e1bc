-- setlane: changes settings of a lane in the running system. Moves no request; safe to send twice.
-- @include rate
-- KEYS  1 lanes  2 sched  3 queue
-- ARGV  1 lane  then pairs: setting, value ('' = as the processes were started)
-- Returns  how many of them have changed.   Cost: about 7 us.
-- admit, pull and claim read them in the same hash, so they are in force with the next call.
-- A new weight counts from now on: what the lane is ahead of the others or behind them was measured by the old one.
-- A pause is no time in which the lane could have drained. A blocking read knows no pauses and would be given all that is
-- not delivered yet, entry by entry: so the group is set to the stream's end; from the fair index pull still finds it.
local lane, changed = ARGV[1], 0
for i = 2, #ARGV, 2 do
  local field, value = lane .. '.' .. ARGV[i], ARGV[i + 1]
  if (redis.call('HGET', KEYS[1], field) or '') ~= value then
    changed = changed + 1
    if value == '' then redis.call('HDEL', KEYS[1], field) else redis.call('HSET', KEYS[1], field, value) end
    if ARGV[i] == 'weight' then redis.call('HDEL', KEYS[2], 'pass:' .. lane, 'again:' .. lane) end
    if ARGV[i] == 'paused' then
      standstill(KEYS[2], lane)
      if value == '1' and redis.call('EXISTS', KEYS[3]) == 1 then redis.call('XGROUP', 'SETID', KEYS[3], 'g', '$') end
    end
  end
end
return changed
