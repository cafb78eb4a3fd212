package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// serviceOrProxy gives the flows of a Service, whether this node or another proxy serves it.
func (b *builder) serviceOrProxy(o serviceObject, self localInputs) {
	b.service(o.service, self)
	for _, clusterIP := range o.otherProxies {
		b.otherProxy(clusterIP)
	}
}

// service gives the flows and groups of one Service: for each of its addresses a flow to the group of the endpoints
// that its traffic policy leaves.
func (b *builder) service(s model.Service, self localInputs) {
	for _, p := range s.Ports {
		is4 := p.ClusterIP.Is4()
		t := transportOf(p.Protocol)
		if t.protocol == "" {
			continue
		}
		sb := &serviceBuilder{
			builder: b, service: s, port: p, proto: t.of(is4), own: self.ownRange(is4), pools: map[bool]*pool{},
		}
		for _, f := range p.Frontends() {
			match := sb.to(f.At)
			sb.refused = Untranslatable(p, f, self.kernel) != nil
			switch {
			case f.Kind == model.ClusterIP:
				// Above all external addresses: a tenant may write any address there, another Service's ClusterIP, too.
				sb.frontend(prioHigh, sb.pool(f.Local), match...)
				if !self.kernel && onlyPort(s, p) {
					later, match := sb.laterFragments(f.At.Addr())
					later.frontend(prioHigh, sb.pool(f.Local), match...)
				}
			case f.Kind == model.NodePort:
				sb.nodePort(self, match...)
				if !self.kernel && p.Protocol == model.UDP {
					later, match := sb.laterFragments(f.At.Addr())
					later.nodePort(self, match...)
				}
			case f.Closed:
				sb.drop(SourceRange, in{ServiceLB, prioNormal, sb.proto, match})
			default:
				sb.external(withGateway(f.Sources, self.addrs, sb.own), match...)
			}
		}
	}
}

// Untranslatable says why a frontend's clients are rejected although it may have endpoints, or nil. Open vSwitch 3.1's
// userspace datapath tracks SCTP by addresses alone: ports stay, so that packets would reach another port of the
// endpoint.
func Untranslatable(p model.ServicePort, f model.Frontend, kernelDatapath bool) error {
	if kernelDatapath || p.Protocol != model.SCTP {
		return nil
	}
	for _, e := range slices.Concat(p.Cluster, p.Local) {
		if e.Port != f.At.Port() {
			return fmt.Errorf("the userspace datapath of Open vSwitch does not translate SCTP ports, and endpoints have port "+
				"%d, not %d: give the Service that port, or use datapath: system", e.Port, f.At.Port())
		}
	}
	return nil
}

// noService keeps the addresses of pods and gateways out of Services' reach: a user who may write a Service names its
// external addresses, and must not draw other pods' clients to itself.
func (b *builder) noService(podCIDR netip.Prefix) {
	b.add(in{ServiceLB, prioTop, openflow.Protocol(podCIDR.Addr()), matches(openflow.Destination(podCIDR))},
		openflow.Goto(PolicyEntry))
}

// unserved rejects what is sent to an address of a Service range at a port that no Service has. Fragments are
// dropped: conntrack would put them together with later ones that a Service of the address takes.
func (b *builder) unserved(cidr netip.Prefix, kernelDatapath bool) {
	for _, t := range transports {
		b.add(in{ServiceLB, prioLowest, t.of(cidr.Addr().Is4()), matches(openflow.Destination(cidr))},
			reject(cidr.Addr().Is4()))
	}
	if !kernelDatapath {
		b.drop(UnservedFragment, in{ServiceLB, prioLower, openflow.Protocol(cidr.Addr()), matches(openflow.Destination(cidr),
			openflow.Fragments("yes"))})
	}
}

// otherProxy leaves the ClusterIP of a Service to another proxy: what pods send there reaches the node as it is. What
// the node sends is rejected where that proxy does not take it, as any unserved ClusterIP is.
func (b *builder) otherProxy(clusterIP netip.Addr) {
	match := matches(Origin.Is(OriginPod), openflow.Destination(openflow.Host(clusterIP)))
	b.add(in{ServiceLB, prioLow, openflow.Protocol(clusterIP), match}, openflow.Goto(PolicyEntry))
}

// notTwice keeps what a Service has led out of the switch from being led on by another: endpoints are whatever a user
// writes into a slice, and two Services whose endpoints are each other's addresses would send a packet to and fro until
// its time is over.
func (b *builder) notTwice() {
	for _, any := range families {
		b.add(in{ConntrackState, prioLow, openflow.Protocol(any),
			matches(openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0),
				Origin.Is(OriginGateway), openflow.Source(openflow.Host(model.MasqueradeAddr(any.Is4()))))}, openflow.Goto(
			PolicyEntry))
	}
}

// reject sends a packet to the address that the node refuses packets to.
func reject(is4 bool) ovs.Action {
	return translate(netip.AddrPortFrom(model.RejectAddr(is4), 0))
}

// translate gives a connection an endpoint, and notes it: a connection whose endpoint is gone is found by that.
func translate(to netip.AddrPort) ovs.Action {
	const bits = MarkService | markPort
	return openflow.CT{
		Commit: true, Table: PolicyEntry, Zone: Zone, NAT: openflow.DestinationNAT(to),
		Exec: []ovs.Action{bits.Set(uint32(MarkService) | uint32(to.Port())<<16),
			openflow.AllLabel.Set(openflow.AddrValue(to.Addr()))},
	}.Action()
}

func transportOf(p model.Protocol) transport {
	for _, t := range transports {
		if t.protocol == p {
			return t
		}
	}
	return transport{}
}

// serviceBuilder is the builder of one port in one family.
type serviceBuilder struct {
	*builder
	service model.Service
	port    model.ServicePort
	proto   ovs.Protocol
	own     netip.Prefix
	pools   map[bool]*pool // by whether they are of the traffic policy Local
	refused bool           // the frontend at hand leads nowhere
	later   bool           // the flows are for later fragments
}

// pool is a set of endpoints that frontends share, with its group.
type pool struct {
	buckets []openflow.Bucket
	// classes divide the clients by source port; a pool without classes drops the packets.
	classes []portClass
	// sticky are the actions for each bucket's endpoint, with sessionAffinity.
	sticky [][]ovs.Action
}

// portClass is the actions for a class of a frontend's clients by source port.
type portClass struct {
	match   []ovs.Match // nil for all ports
	actions []ovs.Action
}

// allPorts gives all clients the same actions.
func allPorts(actions ...ovs.Action) []portClass { return []portClass{{actions: actions}} }

func (sb *serviceBuilder) to(at netip.AddrPort) []ovs.Match {
	return matches(openflow.Destination(openflow.Host(at.Addr())), openflow.DestinationPort(at.Port(), 0xffff))
}

// nodePort adds the flows of a node port. The node's own clients arrive with the node's tunnel address (see
// host.Desired.Address).
func (sb *serviceBuilder) nodePort(self localInputs, match ...ovs.Match) {
	match = also(match, Origin.Is(OriginGateway))
	node := self.primaryAddr()
	if sb.port.ExternalLocal && node.IsValid() && node.Is4() == sb.port.ClusterIP.Is4() {
		sb.frontend(prioRaised, sb.pool(false), also(match, openflow.Source(openflow.Host(node)))...)
	}
	sb.external(nil, match...)
}

// external gives the flows of an address that is meant for clients outside. Under the traffic policy Local these reach
// endpoints of this node only; the node and its own pods reach all, as they do through the cluster IP.
func (sb *serviceBuilder) external(sources []netip.Prefix, match ...ovs.Match) {
	outside := sb.pool(sb.port.ExternalLocal)
	inside := sb.port.ExternalLocal && sb.own.IsValid()
	if len(sources) == 0 {
		sb.frontend(prioNormal, outside, match...)
		if inside {
			sb.frontend(prioRaised, sb.pool(false), also(match, openflow.Source(sb.own))...)
		}
		return
	}
	sb.drop(SourceRange, in{ServiceLB, prioLower, sb.proto, match})
	for _, r := range sources {
		sb.frontend(prioNormal, outside, also(match, openflow.Source(r))...)
		if inside && r.Overlaps(sb.own) {
			both := r
			if r.Bits() < sb.own.Bits() {
				both = sb.own
			}
			sb.frontend(prioRaised, sb.pool(false), also(match, openflow.Source(both))...)
		}
	}
}

// withGateway adds the node's gateway address to ranges that one of its other addresses is in: what the node itself
// sends has that source here, and the author of the ranges knows the others.
func withGateway(sources []netip.Prefix, addrs []netip.Addr, own netip.Prefix) []netip.Prefix {
	listed := func(r netip.Prefix) bool { return slices.ContainsFunc(addrs, r.Contains) }
	if !own.IsValid() || !slices.ContainsFunc(sources, listed) {
		return sources
	}
	gateway := model.GatewayAddr(own)
	if slices.ContainsFunc(sources, func(r netip.Prefix) bool { return r.Contains(gateway) }) {
		return sources
	}
	return append(slices.Clone(sources), netip.PrefixFrom(gateway, gateway.BitLen()))
}

// frontend gives the flows of one address. The priority after it is that of clients that come back.
func (sb *serviceBuilder) frontend(priority uint16, p *pool, match ...ovs.Match) {
	if len(p.classes) == 0 {
		sb.drop(NoLocalEndpoint, in{ServiceLB, priority, sb.proto, match})
	}
	for _, c := range p.classes {
		if c.match == nil {
			sb.add(in{ServiceLB, priority, sb.proto, match}, c.actions...)
			continue
		}
		if sb.later {
			break // it has no port to choose a class; a TCP connection, and only TCP has classes, begins in one piece
		}
		// A lower priority: OVS then matches the source port in this Service's cache entries only.
		sb.add(in{ServiceLB, priority - 1, sb.proto, also(match, c.match...)}, c.actions...)
	}
	for i, actions := range p.sticky {
		if sb.err != nil {
			return
		}
		chosen := also(match, Bucket.Is(p.buckets[i].ID))
		sb.add(in{ServiceLB, priority + 1, sb.proto, chosen}, openflow.Goto(StickyEndpoint))
		if sb.later {
			actions = actions[1:] // it is the first fragment from which the switch learns
		}
		sb.add(in{StickyEndpoint, priority, sb.proto, chosen}, actions...)
	}
}

// pool makes the group of a traffic policy's endpoints, once.
func (sb *serviceBuilder) pool(local bool) *pool {
	if sb.refused {
		return &pool{classes: allPorts(reject(sb.port.ClusterIP.Is4()))}
	}
	if p := sb.pools[local]; p != nil {
		return p
	}
	p := &pool{}
	sb.pools[local] = p
	endpoints := sb.port.Endpoints(local)
	switch {
	case len(endpoints) == 0 && !sb.port.Elsewhere:
		p.classes = allPorts(reject(sb.port.ClusterIP.Is4()))
		return p
	case len(endpoints) == 0:
		return p
	}
	ids := bucketIDs(endpoints)
	for i, e := range endpoints {
		to := translate(netip.AddrPortFrom(e.Addr, e.Port))
		bucket := openflow.Bucket{ID: ids[i], Weight: max(1, e.Weight), Actions: []ovs.Action{to}}
		if sb.service.Affinity > 0 {
			bucket.Actions = []ovs.Action{Bucket.Set(ids[i]), openflow.Resubmit(StickyEndpoint)}
			p.sticky = append(p.sticky, []ovs.Action{sb.learn(ids[i]), to})
		}
		p.buckets = append(p.buckets, bucket)
	}
	scope := "cluster"
	if local {
		scope = "local"
	}
	name := string(sb.port.Protocol) + "/" + sb.port.Name + "/" + sb.port.ClusterIP.String() + "/" + scope
	p.classes = sb.spread(name, p.buckets)
	return p
}

// onlyPort says whether a Service has one port of this one's protocol and family.
func onlyPort(s model.Service, p model.ServicePort) bool {
	for _, other := range s.Ports {
		if other.Protocol == p.Protocol && other.ClusterIP == p.ClusterIP && other.Port != p.Port {
			return false
		}
	}
	return true
}

// laterFragments gives the builder of flows for the later fragments of a datagram that begins a connection, and what
// they match: they are translated as the first one is. In the userspace datapath they come one by one and have no port,
// so this is for an address with one port of the protocol. Conntrack holds them until the datagram is whole and
// translates it as the fragment says that comes last. A first fragment to another port is dropped (unserved), so that
// none becomes whole.
func (sb *serviceBuilder) laterFragments(at netip.Addr) (*serviceBuilder, []ovs.Match) {
	later := *sb
	later.proto, later.later = openflow.Protocol(at), true
	return &later, matches(
		openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0), openflow.OriginalProtocol(
			sb.port.Protocol.Number()),
		openflow.Destination(openflow.Host(at)), openflow.Fragments("later"))
}

// maxClients is how many clients of one Service the switch remembers. It bounds what a client with many addresses
// (IPv6, or spoofed sources outside the cluster) costs. For other clients the hash of the address alone chooses,
// another endpoint with each epoch. OVS counts the Service's learned flows on each learn action, so a larger number
// slows new connections.
const maxClients = 10000

// learn makes the switch remember which bucket a client was sent to.
func (sb *serviceBuilder) learn(bucket uint32) ovs.Action {
	number := sb.port.Protocol.Number()
	source, destination := openflow.AddrFields(sb.port.ClusterIP)
	_, port := openflow.PortFields(number)
	return openflow.Learn{
		Table: Affinity, Priority: prioNormal, Cookie: sb.cookie, IdleTimeout: uint16(min(sb.service.Affinity,
			model.MaxRemembered) / time.Second), Limit: maxClients,
		Specs: []openflow.LearnSpec{
			openflow.LearnFamily(sb.port.ClusterIP), openflow.LearnProtocol(number),
			openflow.LearnSame(source.All()), openflow.LearnSame(destination.All()), openflow.LearnSame(port.All()),
			openflow.LearnLoad(bucket, Bucket.Field().All()),
		},
	}.Action()
}
