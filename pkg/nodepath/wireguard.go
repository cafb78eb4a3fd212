package nodepath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
)

// wireGuard decides whether packets go to and come from a reachable node by WireGuard, and may decide that they go in
// no other form.
//
// As without a tunnel, a node says that it receives such packets, and others send them only then. WireGuard drops what
// comes from a key that it does not have, so a node sends in another form until both nodes have shaken hands: each
// proves with it that it has the other's key. With Strict it sends by WireGuard at once.
func (r *resolver) wireGuard(s *model.Snapshot, self, n *node) {
	path, t := &n.path, s.Transport
	err := r.checkKey(n)
	if (t.Encrypted || self.ReceivesWireGuard || s.WireGuardGrace) && err == nil {
		path.WireGuard = model.WireGuardPeer{Key: n.WireGuard.Key,
			Endpoint: netip.AddrPortFrom(path.NextHop, n.WireGuard.Port)}
	}
	if !t.Encrypted {
		return
	}
	path.Strict = t.Strict
	switch {
	case err != nil:
		path.NotEncrypted = err.Error()
	case !n.ReceivesWireGuard:
		path.NotEncrypted = fmt.Sprintf("node %s does not publish that it receives packets by WireGuard", n.Name)
	case !t.Strict && !n.WireGuard.Key.In(s.Handshakes):
		path.NotEncrypted = fmt.Sprintf("WireGuard has not shaken hands with node %s yet", n.Name)
	default:
		path.Routed = model.ModeWireGuard
		path.NotEncrypted = notRouted(s, path.PodCIDRs)
	}
	switch {
	case path.NotEncrypted == "":
		path.Mode = model.ModeWireGuard
		path.Overhead = path.Transport.Overhead(path.Local)
	case t.Strict:
		unreachable(path, errors.New(path.NotEncrypted+"; encryptionStrict allows no other way"))
		path.NotEncrypted = ""
	}
}

// checkKey says why a node's key is not used, or nil. A key that several nodes publish is the first one's: a packet
// that it authenticates has one sender.
func (r *resolver) checkKey(n *node) error {
	key := n.WireGuard.Key
	switch owner := r.keys[key]; {
	case key == model.WireGuardKey{}:
		return fmt.Errorf("node %s publishes no WireGuard key", n.Name)
	case owner != n:
		return fmt.Errorf("node %s publishes the WireGuard key of node %s", n.Name, owner.Name)
	}
	return nil
}
