package nodepath

import (
	"fmt"

	"github.com/weft-cni/weft/pkg/model"
)

// ipip decides whether packets go to and come from a reachable node in IPIP: to those to which they do not go directly
// or encrypted.
//
// As without a tunnel, a node says that it receives such packets, and others send them only then. The node's kernel
// makes IPIP, so each node says so only with the devices that it also sends by. Until both nodes do, packets travel in
// a tunnel of the switch.
func ipip(s *model.Snapshot, self, n *node) {
	path, wanted := &n.path, s.Transport.Encapsulation == model.IPIP
	if s.Transport.Strict || !wanted && !self.ReceivesIPIP && !s.IPIPGrace || !path.Reachable() {
		return
	}
	err := sameLengths(self, n)
	path.ReceivesIPIP = err == nil
	if !wanted || path.Routed != "" {
		return
	}
	switch {
	case err != nil:
		path.NotIPIP = err.Error()
	case !self.ReceivesIPIP:
		path.NotIPIP = "this node does not publish that it receives packets in IPIP"
	case !n.ReceivesIPIP:
		path.NotIPIP = fmt.Sprintf("node %s does not publish that it receives packets in IPIP", n.Name)
	default:
		path.Routed = model.ModeIPIP
		path.NotIPIP = notRouted(s, path.PodCIDRs)
	}
	if path.NotIPIP == "" {
		path.Mode, path.Encapsulation = model.ModeIPIP, model.IPIP
		path.Overhead = path.Transport.Overhead(path.Local)
	}
}

// sameLengths is an error when the pod CIDRs of a family differ in length: the sets of pkg/host find the inner source
// of a packet by one mask.
func sameLengths(self, n *node) error {
	for _, cidr := range n.path.PodCIDRs {
		own, ok := ofFamily(self.path.PodCIDRs, cidr.Addr().Is4())
		if ok && own.Bits() != cidr.Bits() {
			return fmt.Errorf("the pod CIDR %s of node %s has another length than this node's %s", cidr, n.Name, own)
		}
	}
	return nil
}
