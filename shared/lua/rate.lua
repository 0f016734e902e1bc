-- Included by scripts that measure or use how fast a queue drains.
-- The rate is that of the recent past with a backlog: while nothing waits, starts say how fast requests come, not how fast
-- they could go. Kept as 'starts seconds last_ms', both decaying over 10 s of backlog, or over four starts where those
-- take longer; last_ms is 0 while nothing waits. A gap that is long beside those before counts for a part of it only: a
-- pool that had no worker, or a lane that was paused, does not drain slowly after that.
--
-- drained(sched, name, now, left): one request of the queue `name` was started, `left` still wait.
-- drain_rate(text): requests/s from what is kept, or nil while too little is known.
local function drained(sched, name, now, left)
  local text = redis.call('HGET', sched, 'rate:' .. name)
  local starts, seconds, last = 0, 0, 0
  if text then
    starts, seconds, last = text:match('^(%S+) (%S+) (%S+)$')
    starts, seconds, last = tonumber(starts), tonumber(seconds), tonumber(last)
  end
  if last > 0 then
    local passed = math.min(math.max(0, now - last) / 1000, 10 + 4 * seconds / math.max(1, starts))
    local keep = math.max(math.exp(-passed / 10), 0.75)
    starts, seconds = starts * keep + 1, seconds * keep + passed
  elseif left <= 0 then
    return
  end
  redis.call('HSET', sched, 'rate:' .. name, string.format('%.6g %.6g %.0f', starts, seconds, left > 0 and now or 0))
end

local function drain_rate(text)
  if not text then return nil end
  local starts, seconds = text:match('^(%S+) (%S+)')
  starts, seconds = tonumber(starts), tonumber(seconds)
  if starts < 3 or seconds < 0.05 then return nil end
  return starts / seconds
end
