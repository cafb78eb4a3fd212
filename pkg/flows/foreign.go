package flows

import (
	"slices"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Foreign returns the flows that are not Weft's and stand in the place of none of its own, in order. They are not
// deleted, but they can outrank Weft's: a drop of the highest priority takes a node down.
func Foreign(actual openflow.Contents, desired Desired) []openflow.Flow {
	var list []openflow.Flow
	for _, e := range actual.Flows {
		if _, ok := desired.Flows[e.Key]; !ok && !Ours(e.Cookie) {
			list = append(list, e.Flow)
		}
	}
	slices.SortFunc(list, func(a, b openflow.Flow) int { return a.Key.Compare(b.Key) })
	return list
}
