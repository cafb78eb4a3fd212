package flows

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// verdicts say what the policies' flows do with the first packet of a connection, without the flows. The rules of a
// direction have numbers; what has a pod, a peer or a port in common is a set of numbers, and a rule allows when it
// is in all three, as in a conjunction. So a connection costs the intersection of three sets, however many policies
// there are.
type verdicts struct {
	attached   map[netip.Addr]bool
	node       map[netip.Addr]bool
	directions []*ruleIndex // in the order of stages
}

// ruleIndex are the rules of one direction.
type ruleIndex struct {
	direction model.Direction
	rules     []model.PolicyRule
	pods      map[netip.Addr][]int // of isolated pods: the rules about each
	peers     map[netip.Prefix][]int
	anyPeer   []int
	bits      map[int]bool // lengths that peers have
	// Memos, emptied when they are full.
	ofPod  map[netip.Addr]ruleSet
	ofPeer map[netip.Addr]ruleSet
	ofPort map[portKey]ruleSet
}

type portKey struct {
	protocol uint8
	port     uint16
}

// maxMemo bounds the sets that are kept for connections to come.
const maxMemo = 4096

func newVerdicts(s *model.Snapshot, quarantined map[model.Owner]error) *verdicts {
	v := &verdicts{attached: map[netip.Addr]bool{}, node: map[netip.Addr]bool{}}
	for key, a := range s.Attachments {
		for _, ip := range a.IPs {
			v.attached[ip] = !s.Unknown[key]
		}
	}
	for _, addr := range selfInputsOf(s).nodeAddrs() {
		v.node[addr] = true
	}
	for _, st := range stages {
		x := &ruleIndex{direction: st.direction, pods: map[netip.Addr][]int{}, peers: map[netip.Prefix][]int{},
			bits:  map[int]bool{},
			ofPod: map[netip.Addr]ruleSet{}, ofPeer: map[netip.Addr]ruleSet{}, ofPort: map[portKey]ruleSet{}}
		for _, p := range s.Policies {
			x.add(p, quarantined[model.PolicyOwner(p.Name)] != nil)
		}
		v.directions = append(v.directions, x)
	}
	return v
}

// add adds a policy's side. Of a quarantined policy only what isolates is programmed.
func (x *ruleIndex) add(p model.Policy, quarantined bool) {
	side := p.Side(x.direction)
	if side == nil {
		return
	}
	for _, pod := range side.Pods {
		x.pods[pod] = slices.Clip(x.pods[pod]) // isolated, be it by no rule
	}
	if quarantined {
		return
	}
	for _, r := range rulesOf(p, side) {
		n := len(x.rules)
		x.rules = append(x.rules, r)
		for _, pod := range r.Pods {
			x.pods[pod] = append(x.pods[pod], n)
		}
		if r.AnyPeer {
			x.anyPeer = append(x.anyPeer, n)
			continue
		}
		for _, peer := range r.Peers {
			x.peers[peer] = append(x.peers[peer], n)
			x.bits[peer.Bits()] = true
		}
	}
}

// allow is the policy stages of the pipeline.
func (v *verdicts) allow(c openflow.Connection) bool {
	from, to := c.Source.Addr(), c.Endpoint.Addr()
	if from == to && v.attached[from] { // see allowSelf
		return true
	}
	for _, x := range v.directions {
		subject, peer := to, from
		if x.direction == model.Egress {
			subject, peer = from, to
		}
		switch {
		case v.node[peer]: // see allowNode
		case x.direction == model.Egress && peer == model.RejectAddr(peer.Is4()): // see allowRejection
		case !x.allow(subject, peer, portKey{c.Protocol, c.Endpoint.Port()}):
			return false
		}
	}
	return true
}

func (x *ruleIndex) allow(subject, peer netip.Addr, port portKey) bool {
	about, isolated := x.pods[subject]
	if !isolated {
		return true
	}
	if len(about) == 0 {
		return false
	}
	pods := memo(x.ofPod, subject, func() ruleSet { return x.set(about) })
	return pods.intersects(memo(x.ofPeer, peer, func() ruleSet {
		return x.withPeer(peer)
	}), memo(x.ofPort, port, func() ruleSet { return x.withPort(port) }))
}

func (x *ruleIndex) withPeer(peer netip.Addr) ruleSet {
	set := x.set(x.anyPeer)
	for bits := range x.bits {
		if p, err := peer.Prefix(bits); err == nil { // else a length of the other family
			set.add(x.peers[p])
		}
	}
	return set
}

func (x *ruleIndex) withPort(k portKey) ruleSet {
	set := x.set(nil)
	for n, r := range x.rules {
		if r.AnyPort || slices.ContainsFunc(r.Ports, func(m model.PortMatch) bool {
			return m.Protocol.Number() == k.protocol && k.port&m.Mask == m.Port
		}) {
			set.add([]int{n})
		}
	}
	return set
}

func (x *ruleIndex) set(numbers []int) ruleSet {
	set := make(ruleSet, (len(x.rules)+63)/64)
	set.add(numbers)
	return set
}

// ruleSet is a set of rules' numbers, a bit for each.
type ruleSet []uint64

func (s ruleSet) add(numbers []int) {
	for _, n := range numbers {
		s[n/64] |= 1 << (n % 64)
	}
}

// intersects says whether a rule is in all three sets.
func (s ruleSet) intersects(a, b ruleSet) bool {
	for i := range s {
		if s[i]&a[i]&b[i] != 0 {
			return true
		}
	}
	return false
}

// memo gives what was made for a key before, or makes it.
func memo[K comparable](sets map[K]ruleSet, key K, build func() ruleSet) ruleSet {
	set, ok := sets[key]
	if !ok {
		if len(sets) >= maxMemo {
			clear(sets)
		}
		set = build()
		sets[key] = set
	}
	return set
}
