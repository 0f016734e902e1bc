-- Included by scripts that need the time. The server's clock decides every deadline, never a client's.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
