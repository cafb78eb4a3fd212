package openflow

// Delta is a change of a switch's flows and groups, to be made as a whole (see ofswitch.Apply): flows may use groups
// and meters of the same Delta.
type Delta struct {
	// Set are flows to add, or to replace where the key exists.
	Set []Flow
	// Delete are flows to remove. One that another program has replaced (its cookie differs) stays.
	Delete []Flow
	// SetGroups are groups to add, or to replace where the number exists.
	SetGroups []Group
	// DeleteGroups are groups to remove. The switch removes flows that use them, too.
	DeleteGroups []GroupID
	// Forget are flows that the switch has learned and is to remove: with a match that one, without one all of the
	// table with the cookie.
	Forget []Flow
	// Meters are those that flows of Set need. Meters cannot be part of a bundle: they are made before it.
	Meters []Meter
}

// Empty says whether there is nothing to do.
func (d Delta) Empty() bool {
	return len(d.Set)+len(d.Delete)+len(d.SetGroups)+len(d.DeleteGroups)+len(d.Forget) == 0
}
