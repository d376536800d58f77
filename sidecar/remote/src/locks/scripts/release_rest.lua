if not open() then return UNREADABLE end
local is_held = held_by(owner) == token
if is_held then drop(owner) end
pass_on()
return is_held and 1 or 0
