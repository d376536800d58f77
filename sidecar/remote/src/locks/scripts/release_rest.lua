open()
local is_held = held_by(owner) == token
if is_held then drop(owner) end
hand_over()
tidy()
return {is_held and 1 or 0}
