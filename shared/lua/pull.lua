-- pull: picks up to `want` queued entries for one worker, by stride scheduling over the lanes. The requests stay queued
-- until `claim`.
-- @include clock
-- KEYS  1 sched  2 lease  3 dead  4.. queues, the retry queue first
-- ARGV  1 worker id  2 want  then per queue: name, weight, age limit (ms)
-- Returns  a list of {queue name, entry id, rid}, possibly empty.   Error 'FENCED' when the worker is condemned.
-- The retry queue always goes first. Otherwise the queue with the smallest pass is served and its pass grows by
-- 1/weight; a queue that slept rejoins at the current virtual time; a head older than its age limit goes first, but at
-- most one pick in four (credit), or an old batch backlog would starve interactive users.
-- Cost: about 16 us an entry.
if redis.call('EXISTS', KEYS[3]) == 1 then return redis.error_reply('FENCED') end
local want, queues = tonumber(ARGV[2]), #KEYS - 3
local now = now_ms()
local name, weight, age_limit, pass, alive = {}, {}, {}, {}, {}
local vtime = tonumber(redis.call('HGET', KEYS[1], 'vtime') or '0')
local credit = tonumber(redis.call('HGET', KEYS[1], 'credit') or '1')
for i = 1, queues do
  name[i], weight[i], age_limit[i] = ARGV[3 * i], tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  alive[i] = redis.call('XLEN', KEYS[3 + i]) > 0
  if alive[i] then
    pass[i] = math.max(vtime, tonumber(redis.call('HGET', KEYS[1], 'pass:' .. name[i]) or '0'))
  end
end

local function pick()
  local best, aged
  for i = 1, queues do
    if alive[i] then
      if name[i] == 'retry' then return i, false end
      local last = redis.call('HGET', KEYS[1], 'last:' .. name[i])
      local head = redis.call('XRANGE', KEYS[3 + i], last and '(' .. last or '-', '+', 'COUNT', '1')[1]
      if head then
        local over = now - tonumber(head[1]:match('^(%d+)')) - age_limit[i]
        if over > 0 and credit >= 1 then
          if not aged or over > aged then best, aged = i, over end
        elseif not aged and (not best or pass[i] < pass[best]) then
          best = i
        end
      else
        alive[i] = false
      end
    end
  end
  return best, aged ~= nil
end

local out, touched = {}, {}
while want > 0 do
  local i, aged = pick()
  if not i then break end
  local reply = redis.call('XREADGROUP', 'GROUP', 'g', ARGV[1], 'COUNT', '1', 'STREAMS', KEYS[3 + i], '>')
  local entry = reply and reply[1] and reply[1][2][1]
  if entry then
    out[#out + 1] = {name[i], entry[1], entry[2][2]}
    redis.call('HSET', KEYS[1], 'last:' .. name[i], entry[1])
    vtime = math.max(vtime, pass[i])
    pass[i] = pass[i] + 1 / weight[i]
    touched[i] = true
    want = want - 1
    if name[i] ~= 'retry' then
      if aged then credit = credit - 1 else credit = math.min(2, credit + 1 / 3) end
    end
  else
    alive[i] = false
  end
end
if #out > 0 then
  local fields = {'vtime', tostring(vtime), 'credit', tostring(credit)}
  for i in pairs(touched) do
    fields[#fields + 1] = 'pass:' .. name[i]
    fields[#fields + 1] = tostring(pass[i])
  end
  redis.call('HSET', KEYS[1], unpack(fields))
end
return out
