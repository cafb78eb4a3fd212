package flows

import (
	"hash/fnv"

	"github.com/weft-cni/weft/pkg/model"
)

// A cookie is 16 bits that say "Weft", 8 bits of kind and 40 bits of a hash of the name.
const (
	cookieMark uint64 = 0x5765 << 48
	cookieMask uint64 = 0xffff << 48
)

// Cookie is the cookie of an owner's flows.
func Cookie(o model.Owner) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.FullName())) // a hash takes every write
	sum := h.Sum64()
	return cookieMark | uint64(o.Kind)<<40 | (sum^sum>>40)&(1<<40-1)
}

// Ours says whether a flow with this cookie was written by Weft.
func Ours(cookie uint64) bool { return cookie&cookieMask == cookieMark }

// KindOf is the kind that one of our cookies names.
func KindOf(cookie uint64) model.Kind { return model.Kind(cookie >> 40) }
