package flows

import (
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// KeysOf lists the keys of the flows that an owner wants. Others may want some of them, too.
func KeysOf(s *model.Snapshot, o model.Owner) []openflow.Key {
	own, _ := compileOwner(s, o) // with an error, what of it stays
	keys := make([]openflow.Key, 0, len(own.Flows))
	for _, f := range own.Flows {
		keys = append(keys, f.Key)
	}
	return keys
}
