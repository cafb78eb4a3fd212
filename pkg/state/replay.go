package state

import (
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// Node are the changes that give a new store what a snapshot has from the node itself, and what is in use of its Node
// object. The rest is from the configuration and from the API server.
func Node(s *model.Snapshot, now time.Time) []Change {
	changes := []Change{
		SetTime{now}, SetReceiveGrace{s.ReceiveGrace, s.IPIPGrace, s.WireGuardGrace}, SetRouted{s.Routed},
		SetHandshakes{s.Handshakes},
		SetKernelDatapath{s.KernelDatapath},
		SetLocalAddrs{s.LocalAddrs}, SetNode{s.Self},
	}
	for _, a := range s.Attachments {
		changes = append(changes, SetAttachment{a})
	}
	return changes
}
