-- pull: picks up to `want` queued entries for one worker: stride scheduling over the lanes, start-time fair queueing over
-- the tenants inside a lane, behind what had started before. The requests stay queued until `claim`.
-- @include clock
-- KEYS  1 sched  2 lease  3 dead  4 lanes  5 workers  then per lane: queue, fair, ledger
-- ARGV  1 worker id  2 want: of all lanes at most this worker's part of what waits, or one to four
--       3 the only lane to pick from ('' = all)
--       4 how long (ms) a head must have waited to be picked
--       5 slots of the worker, with an only lane: that gets no more of them than its weight's part
--       6 how many sequences the worker runs, of the only lane if there is one
--       7.. per lane: name, weight, age limit (ms)
-- The lanes' settings in `lanes` go before the ones in ARGV; a paused lane gives only what had started before.
-- Returns  a list of {queue name, entry id, rid}, possibly empty.   Error 'FENCED' when the worker is condemned.
-- The lane with the smallest pass is served and its pass grows by cost/weight; a lane that slept rejoins at the current
-- virtual time; a lane whose head is older than its age limit goes first, but at most one pick in four (credit), or an old
-- batch backlog would starve interactive users.
-- What had started before (its tag is below 0, see `enqueue`) is first of its lane and was paid for: the lane's pass and its
-- virtual time stay. It has a pass of its own (`again:<lane>`), so it comes at its lane's weight: what a pool of batch work
-- hands back neither goes before the other lanes at once nor takes from what its lane is owed.
-- An entry is in the lane's fair index until it is delivered; by XCLAIM, which delivers out of turn. Once the index is
-- empty the group is set to the stream's end, so that a blocking read does not deliver the same entries again; in a paused
-- lane at once, or it would deliver one by one what nobody may claim.
-- Cost: about 21 us an entry.
if redis.call('EXISTS', KEYS[3]) == 1 then return redis.error_reply('FENCED') end
local want, only, wid, waited = tonumber(ARGV[2]), ARGV[3], ARGV[1], tonumber(ARGV[4])
local out, lanes = {}, {}
for i = 0, (#ARGV - 6) / 3 - 1 do
  local name = ARGV[7 + 3 * i]
  if (only == '' or only == name) and redis.call('EXISTS', KEYS[7 + 3 * i]) == 1 then
    lanes[#lanes + 1] = {name = name, queue = KEYS[6 + 3 * i], fair = KEYS[7 + 3 * i], ledger = KEYS[8 + 3 * i],
      weight = tonumber(ARGV[8 + 3 * i]), age_limit = tonumber(ARGV[9 + 3 * i])}
  end
end
if #lanes == 0 then return out end

local now = now_ms()
local set = redis.call('HGETALL', KEYS[4])
for i = 1, #set, 2 do set[set[i]] = set[i + 1] end
local function weight(name, usual) return math.max(tonumber(set[name .. '.weight'] or usual), 0.001) end
if only == '' then
  -- workers that are free share a burst; one that is alone takes it in one go
  local held, workers = tonumber(ARGV[6]), math.max(1, redis.call('HLEN', KEYS[5]))
  local waiting = 0
  for i = 1, #lanes do waiting = waiting + redis.call('ZCARD', lanes[i].fair) end
  -- one that has more than the others may have goes on slowly, since they may be full, or dead
  want = math.min(want, math.max(held > waiting and 1 or 4, math.ceil((waiting + held) / workers) - held))
else
  local own, all = 0, 0
  for i = 7, #ARGV, 3 do
    local w = weight(ARGV[i], ARGV[i + 1])
    all = all + w
    if ARGV[i] == only then own = w end
  end
  want = math.min(want, math.max(1, math.floor(tonumber(ARGV[5]) * own / all)) - tonumber(ARGV[6]))
end
local fields = {'vtime', 'credit'}
for i = 1, #lanes do
  fields[1 + 2 * i], fields[2 + 2 * i] = 'pass:' .. lanes[i].name, 'again:' .. lanes[i].name
end
local kept = redis.call('HMGET', KEYS[1], unpack(fields))
local vtime, credit = tonumber(kept[1] or '0'), tonumber(kept[2] or '1')

local function look(lane)
  local head = redis.call('ZRANGE', lane.fair, 0, 0, 'WITHSCORES')
  lane.head, lane.tag = head[1], head[2]
  if not head[1] then return end
  lane.kind = tonumber(head[2]) < 0 and 'again' or 'pass'
  if lane.paused and lane.kind == 'pass' then
    lane.head = nil
    return
  end
  local age = now - tonumber(head[1]:match('^(%d+)'))
  lane.over = age - lane.age_limit
  if waited > 0 and age < waited then lane.head = nil end -- (a clock that was set back makes ages negative)
end
for i = 1, #lanes do
  local lane = lanes[i]
  lane.weight = weight(lane.name, lane.weight)
  lane.age_limit = tonumber(set[lane.name .. '.age_limit_ms'] or lane.age_limit)
  lane.pass = math.max(vtime, tonumber(kept[1 + 2 * i] or '0'))
  lane.again = math.max(vtime, tonumber(kept[2 + 2 * i] or '0'))
  lane.paused = set[lane.name .. '.paused'] == '1'
  look(lane)
end

local function pick()
  local best, aged
  for i = 1, #lanes do
    local lane = lanes[i]
    if lane.head then
      if credit >= 1 and lane.over > 0 then
        if not aged or lane.over > aged then best, aged = lane, lane.over end
      elseif not aged and (not best or lane[lane.kind] < best[best.kind]) then
        best = lane
      end
    end
  end
  return best, aged ~= nil
end

-- A lane's virtual time: the start tag of what was served last. It also grows by a tenant's part of what is served, up to
-- the next tag that waits: or newcomers, who start at the virtual time, would for ever go before whoever is behind it.
local function virtual_time(lane)
  local kept = redis.call('HMGET', lane.ledger, 'v', 't')
  local v = math.max(tonumber(kept[1] or '0'), tonumber(lane.served))
  local behind = redis.call('ZRANGEBYSCORE', lane.fair, string.format('(%.17g', v), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if not behind[2] then return v end
  return math.min(v + lane.tokens / math.max(1, tonumber(kept[2] or '1')), tonumber(behind[2]))
end

local picks = 0
while want > 0 do
  local lane, aged = pick()
  if not lane then break end
  redis.call('ZREM', lane.fair, lane.head)
  -- nothing when a blocking read has delivered it already, and whoever got it claims it
  local entry = redis.call('XCLAIM', lane.queue, 'g', wid, 3000, lane.head, 'FORCE')[1]
  if entry and entry[2] then
    out[#out + 1] = {lane.name, entry[1], entry[2][2]}
    local cost = tonumber(entry[2][4])
    local kind = lane.kind
    -- A pick for age runs ahead of the others; if time went with it, they would lose what they are owed. The same goes for
    -- what takes a pre-empted slot. Its lane pays for it like for any other: interactive requests beyond their share would
    -- keep taking batch's slots otherwise.
    if only == '' and not aged then vtime = math.max(vtime, lane[kind]) end
    lane[kind] = math.max(vtime, lane[kind]) + cost / lane.weight
    lane.picked = true
    if kind == 'pass' then lane.served, lane.tokens = lane.tag, (lane.tokens or 0) + cost end
    want, picks = want - 1, picks + 1
    if aged then credit = credit - 1 elseif only == '' then credit = math.min(2, credit + 1 / 3) end
    if aged then redis.call('HINCRBY', KEYS[1], 'aged:' .. lane.name, 1) end
  end
  look(lane)
end

if picks > 0 then
  fields = {'vtime', tostring(vtime), 'credit', tostring(credit)}
  for i = 1, #lanes do
    local lane = lanes[i]
    if lane.picked then
      local n = #fields
      fields[n + 1], fields[n + 2] = 'pass:' .. lane.name, tostring(lane.pass)
      fields[n + 3], fields[n + 4] = 'again:' .. lane.name, tostring(lane.again)
    end
    if lane.served then redis.call('HSET', lane.ledger, 'v', virtual_time(lane)) end
  end
  redis.call('HSET', KEYS[1], unpack(fields))
end
for i = 1, #lanes do
  local lane = lanes[i]
  local read_on = not lane.head and (lane.paused or redis.call('EXISTS', lane.fair) == 0)
  if read_on and redis.call('EXISTS', lane.queue) == 1 then redis.call('XGROUP', 'SETID', lane.queue, 'g', '$') end
end
return out
