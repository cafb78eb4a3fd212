package state

import (
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

const (
	// minEpoch is the shortest epoch. Each new one costs the switch a bundle, which on the userspace datapath empties
	// the cache.
	minEpoch = 10 * time.Second
	// respreadBudget bounds how much is compiled again at one time because epochs have changed, in ways from a
	// frontend to an endpoint: some fifty milliseconds of a core. What does not fit waits for the next time.
	respreadBudget = 2000
)

// SetTime says what time it is, by the clocks of all nodes. Services whose affinity has timed out since then get a
// new epoch.
//
// The switch remembers a client for as long as its affinity lasts, from its last connection on. Whom it does not
// remember it sends by a hash of the client's address, which makes all connections of a burst meet one endpoint
// before the first of them is remembered. Seeded with the epoch, that hash may send a client elsewhere that comes
// back after its timeout: an epoch is as long as the timeout, so it is another one by then. Epochs are counted from
// 1970, not from the agent's start, so they are the same on every node and after a restart.
type SetTime struct{ Now time.Time }

func (c SetTime) apply(s *Store) bool {
	s.now = c.Now
	changed := false
	s.respread = min(s.respread+respreadBudget, respreadBudget)
	for name, service := range s.next.Services {
		epoch := affinityEpoch(service, s.now)
		if epoch == service.AffinityEpoch {
			continue
		}
		if s.respread <= 0 {
			break
		}
		s.respread -= ways(service)
		service.AffinityEpoch = epoch
		s.servicesToWrite()[name] = service
		s.changed[model.ServiceOwner(name)] = true
		changed = true
	}
	return changed
}

// affinityEpoch counts the timeouts of a Service's affinity. There are none where nothing is to choose, where clients
// are to be sent by their address whatever the time is, and where the timeout is longer than the switch can remember
// a client: then a new epoch would part clients from their endpoints before it is over.
func affinityEpoch(s model.Service, now time.Time) uint64 {
	if s.Affinity == 0 || s.Affinity > model.MaxRemembered || s.Algorithm == model.HashSource || !hasChoice(s) ||
		now.IsZero() {
		return 0
	}
	return uint64(now.Unix() / int64(max(s.Affinity, minEpoch)/time.Second))
}

func hasChoice(s model.Service) bool {
	for _, p := range s.Ports {
		if len(p.Cluster) > 1 || len(p.Local) > 1 {
			return true
		}
	}
	return false
}

// ways is how many ways lead from the Service's frontends to endpoints: what its flows grow with.
func ways(s model.Service) int {
	n := 0
	for _, p := range s.Ports {
		n += len(p.Frontends()) * (len(p.Cluster) + len(p.Local))
	}
	return n
}
