-- The number that a script wrote as text, or nil: somebody else may have written anything. Beyond 2^53 none is exact.
local function number(text)
  local n = tonumber(text or '')
  return n and n >= 0 and n < 9007199254740992 and string.format('%d', n) == text and n or nil
end

