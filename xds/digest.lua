-- What a pick needs, as request headers: the model, and digests of the prompt's beginning.
--
--   x-gateway-model-name  the body's top-level "model"
--   x-weir-digest         v1;<bytes of body>;<bytes of prompt>;<digest>.<digest>...
--   x-weir-affinity       <digest of the model>;<first digest of the prompt>: the key of tier 2
--
-- The prompt is the value of "prompt", "messages" or "input" as it is spelled in the body; nothing
-- in it is decoded. A digest covers everything from the value's first byte to a boundary: every
-- 1,024 bytes to 8,192, then 1.5 times as far each, to 62,208; and the value's end, if that comes
-- first. So two prompts share a prefix as far as the last digest that they share.
--
-- Invariants
-- 1. Never fails a request. What is not JSON, or not understood, goes on without these headers.
-- 2. What a client sent under these names is gone.
-- 3. A body that Envoy would not buffer is not asked for: body() would answer 413.

local LIMIT = 1000000 -- bytes; Envoy buffers 1 MiB
local BOUNDARIES = {
  1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 12288, 18432, 27648, 41472, 62208,
}
local MODEL_BYTES = 256

local find, byte, sub, char = string.find, string.byte, string.sub, string.char
local bxor, rol, tobit, tohex = bit.bxor, bit.rol, bit.tobit, bit.tohex
local floor = math.floor

-- One round, over a word of 32 bits or less: murmur3's, without its premultiplication, because
-- products beyond 2^53 are not exact here. Spelled out where it is hot.
local function round(h, word) return tobit(rol(bxor(h, word), 13) * 5 + 0x6546b64) end

-- Extend digest h by s[from..to], 16 bytes at a time.
local function extend(h, s, from, to)
  local i = from
  while i + 15 <= to do
    local a, b, c, d, e, f, g, j, k, l, m, n, o, p, q, r = byte(s, i, i + 15)
    h = tobit(rol(bxor(h, a + b * 256 + c * 65536 + d * 16777216), 13) * 5 + 0x6546b64)
    h = tobit(rol(bxor(h, e + f * 256 + g * 65536 + j * 16777216), 13) * 5 + 0x6546b64)
    h = tobit(rol(bxor(h, k + l * 256 + m * 65536 + n * 16777216), 13) * 5 + 0x6546b64)
    h = tobit(rol(bxor(h, o + p * 256 + q * 65536 + r * 16777216), 13) * 5 + 0x6546b64)
    i = i + 16
  end
  for j = i, to do h = round(h, byte(s, j)) end
  return h
end

-- The digests of s[from..to], joined by dots, and the first of them.
local function digests(s, from, to)
  local h, at, out = 0, from, {}
  for k = 1, #BOUNDARIES do
    local last = from + BOUNDARIES[k] - 1
    if last >= to then last = to end
    h = extend(h, s, at, last)
    out[k] = tohex(h)
    if last == to then break end
    at = last + 1
  end
  return table.concat(out, "."), out[1]
end

local function utf8(code)
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xC0 + floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return char(0xE0 + floor(code / 4096), 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(
    0xF0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64,
    0x80 + floor(code / 64) % 64, 0x80 + code % 64
  )
end

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- What a JSON string without its quotes says.
local function decode(s)
  local at = find(s, "\\", 1, true)
  if not at then return s end
  local out, from = {}, 1
  while at do
    out[#out + 1] = sub(s, from, at - 1)
    local escaped = sub(s, at + 1, at + 1)
    local code = escaped == "u" and tonumber(sub(s, at + 2, at + 5), 16)
    from = at + 2
    if code then
      from = at + 6
      local low = find(s, "^\\u[dD][c-fC-F]%x%x", from) and tonumber(sub(s, from + 2, from + 5), 16)
      if low and code >= 0xD800 and code < 0xDC00 then
        code = 0x10000 + (code - 0xD800) * 1024 + low - 0xDC00
        from = from + 6
      end
    end
    out[#out + 1] = code and utf8(code) or ESCAPES[escaped] or escaped
    at = find(s, "\\", from, true)
  end
  out[#out + 1] = sub(s, from)
  return table.concat(out)
end

-- The closing quote of the string that opens at i: the next one that is not escaped, that is, with
-- an even number of backslashes before it.
local function close(s, i)
  local k = i
  while true do
    k = find(s, '"', k + 1, true)
    if not k then return nil end
    local j = k - 1
    while byte(s, j) == 92 do j = j - 1 end
    if (k - j) % 2 == 1 then return k end
  end
end

-- Members of the top-level object, by hopping from quote to bracket: calls visit(key, from, to)
-- with where each value lies. Stops, without a word, where s is not JSON.
local function members(s, visit)
  local i = find(s, "%S")
  if not i or byte(s, i) ~= 123 then return end
  local depth, key, from = 1, nil, nil
  i = i + 1
  while true do
    i = find(s, depth == 1 and '["{}%[%]:,]' or '["{}%[%]]', i)
    if not i then return end
    local c = byte(s, i)
    if c == 34 then -- "
      local e = close(s, i)
      if not e then return end
      if depth == 1 and not from then key = decode(sub(s, i + 1, e - 1)) end
      i = e
    elseif c == 123 or c == 91 then -- { [
      depth = depth + 1
    elseif c == 58 then -- :
      if not key then return end
      from = from or find(s, "%S", i + 1)
    else -- } ] ,
      if depth == 1 then
        if from then visit(key, from, i - 1) end
        key, from = nil, nil
      end
      if c ~= 44 then depth = depth - 1 end
      if depth == 0 then return end
    end
    i = i + 1
  end
end

local RANK = { prompt = 1, messages = 2, input = 3 }

-- The model, and where the prompt lies.
local function read(s)
  local model, rank, from, to
  members(s, function(key, first, last)
    local c = byte(s, first)
    while last > first and find(s, "^%s", last) do last = last - 1 end
    if key == "model" and c == 34 then
      model = decode(sub(s, first + 1, last - 1))
    elseif RANK[key] and RANK[key] <= (rank or 9) and (c == 34 or c == 91 or c == 123) then
      rank, from, to = RANK[key], first, last
    end
  end)
  return model, from, to
end

-- The headers that a body of n bytes gets: model, digest, affinity; nil where there is none.
local function derive(s, n)
  local ok, model, from, to = pcall(read, s)
  if not ok then return end
  if model and (model == "" or #model > MODEL_BYTES or find(model, "%c")) then model = nil end
  local key = model and tohex(extend(0, model, 1, #model))
  if not from then return model, nil, key end
  local all, first = digests(s, from, to)
  local digest = "v1;" .. n .. ";" .. (to - from + 1) .. ";" .. all
  return model, digest, (key or "00000000") .. ";" .. first
end

local function set(headers, name, value)
  if value then headers:replace(name, value) else headers:remove(name) end
end

function envoy_on_request(handle)
  local length = tonumber(handle:headers():get("content-length") or "")
  local model, digest, affinity
  if length and length > 0 and length <= LIMIT then
    local body = handle:body()
    if body then
      local n = body:length()
      model, digest, affinity = derive(body:getBytes(0, n), n)
    end
  end
  local headers = handle:headers() -- body() yields, and what was fetched before it is stale
  set(headers, "x-gateway-model-name", model)
  set(headers, "x-weir-digest", digest)
  set(headers, "x-weir-affinity", affinity)
end
