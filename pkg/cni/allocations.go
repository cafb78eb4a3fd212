package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/weft-cni/weft/pkg/model"
)

// allocations records what the node's attachments own: addresses, OpenFlow ports and link names. An entry exists from
// before the attachment's first resource is created until after the last one is deleted, so no resource is ever
// allocated twice.
type allocations struct {
	mu      sync.Mutex
	entries map[model.AttachmentKey]entry
	ips     map[netip.Addr]model.AttachmentKey
	ports   map[uint32]model.AttachmentKey
	names   map[string]model.AttachmentKey
	orphans map[string]struct{} // by link name, see orphan.go
	// lastIP and lastPort are the positions of the rotation. Together with freed they reuse the most recently freed
	// address last.
	lastIP   map[netip.Prefix]netip.Addr
	lastPort uint32
	freed    freed
	// resume holds the last allocated addresses of the previous agent.
	resume []netip.Addr
}

type entry struct {
	att model.Attachment
	// complete is set from the success of ADD until removal begins. An attachment that is not complete is being added
	// or removed, or its rollback or removal failed.
	complete bool
}

func newAllocations() *allocations {
	return &allocations{
		entries:  map[model.AttachmentKey]entry{},
		ips:      map[netip.Addr]model.AttachmentKey{},
		ports:    map[uint32]model.AttachmentKey{},
		names:    map[string]model.AttachmentKey{},
		orphans:  map[string]struct{}{},
		lastIP:   map[netip.Prefix]netip.Addr{},
		lastPort: model.PortPodMin - 1,
	}
}

// reserve allocates a new attachment's addresses (one of each range), OpenFlow port and link name. The MAC is derived
// from the addresses unless mac is set. It fails without effect when the key exists or a resource is exhausted.
func (al *allocations) reserve(key model.AttachmentKey, pod model.PodRef, cidrs []netip.Prefix,
	mac model.MAC) (model.Attachment, error) {
	al.mu.Lock()
	defer al.mu.Unlock()
	if e, ok := al.entries[key]; ok {
		if !e.complete {
			return model.Attachment{}, errorf(ErrAlreadyAttached, "container %s interface %s: an earlier ADD or DEL "+
				"failed and left resources behind; DEL it first", key.ContainerID, key.IfName)
		}
		return model.Attachment{}, errorf(ErrAlreadyAttached, "container %s is already attached with interface %s and "+
			"address %v; DEL it first", key.ContainerID, key.IfName, e.att.IPs)
	}
	att := model.Attachment{ContainerID: key.ContainerID, IfName: key.IfName, Pod: pod, MAC: mac}
	var err error
	if att.OFPort, err = al.nextPort(); err != nil {
		return model.Attachment{}, err
	}
	if att.HostIfName, err = al.freeName(pod, key); err != nil {
		return model.Attachment{}, err
	}
	for _, cidr := range cidrs {
		ip, err := al.allocate(key, cidr)
		if err != nil {
			al.freeIPs(key)
			return model.Attachment{}, err
		}
		att.IPs = append(att.IPs, ip)
	}
	if mac == (model.MAC{}) {
		att.MAC = macFor(att.IPs)
	}
	al.lastPort = att.OFPort
	al.add(entry{att: att})
	return att, nil
}

// load adds an attachment that an earlier agent recorded, as complete. It adds it even when the address or port belongs
// to another attachment, so that DEL can end the conflict; the error names the conflicting attachments.
func (al *allocations) load(att model.Attachment) error {
	al.mu.Lock()
	defer al.mu.Unlock()
	var errs []error
	for _, ip := range att.IPs {
		if other, ok := al.ips[ip]; ok {
			errs = append(errs, fmt.Errorf("attachments %s and %s are both recorded with address %s", other, att.Key(), ip))
		}
	}
	if other, ok := al.ports[att.OFPort]; ok {
		errs = append(errs,
			fmt.Errorf("attachments %s and %s are both recorded with OpenFlow port %d", other, att.Key(), att.OFPort))
	}
	al.lastPort = max(al.lastPort, att.OFPort)
	al.add(entry{att: att, complete: true})
	return errors.Join(errs...)
}

func (al *allocations) add(e entry) {
	key := e.att.Key()
	al.entries[key] = e
	al.ports[e.att.OFPort] = key
	al.names[e.att.HostIfName] = key
	for _, ip := range e.att.IPs {
		al.ips[ip] = key
	}
}

// markComplete records the attachment as ADD has made it.
func (al *allocations) markComplete(att model.Attachment) {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.entries[att.Key()] = entry{att: att, complete: true}
}

// available reports whether the attachment's addresses and port number are all unused.
func (al *allocations) available(att model.Attachment) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	_, used := al.ports[att.OFPort]
	return !used && !slices.ContainsFunc(att.IPs, func(ip netip.Addr) bool { _, used := al.ips[ip]; return used })
}

// markRemoving marks the attachment as not complete, before its resources are deleted.
func (al *allocations) markRemoving(key model.AttachmentKey) {
	al.mu.Lock()
	defer al.mu.Unlock()
	if e, ok := al.entries[key]; ok {
		al.entries[key] = entry{att: e.att}
	}
}

// release frees all resources of the attachment. Its port, flows and link must have been deleted.
func (al *allocations) release(key model.AttachmentKey) {
	al.mu.Lock()
	defer al.mu.Unlock()
	e, ok := al.entries[key]
	if !ok {
		return
	}
	al.retireIPs(key)
	if al.ports[e.att.OFPort] == key {
		delete(al.ports, e.att.OFPort)
	}
	delete(al.names, e.att.HostIfName)
	delete(al.entries, key)
}

func (al *allocations) get(key model.AttachmentKey) (model.Attachment, bool) {
	al.mu.Lock()
	defer al.mu.Unlock()
	e, ok := al.entries[key]
	return e.att, ok
}

// listComplete returns the complete attachments, in any order.
func (al *allocations) listComplete() []model.Attachment {
	al.mu.Lock()
	defer al.mu.Unlock()
	var list []model.Attachment
	for _, e := range al.entries {
		if e.complete {
			list = append(list, e.att)
		}
	}
	return list
}

// isComplete reports whether this attachment exists and is complete. Its key may belong to a newer attachment, which
// does not count.
func (al *allocations) isComplete(att model.Attachment) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	e := al.entries[att.Key()]
	return e.complete && e.att.OFPort == att.OFPort && slices.Equal(e.att.IPs, att.IPs)
}

// keys lists the keys of all attachments, sorted.
func (al *allocations) keys() []model.AttachmentKey {
	al.mu.Lock()
	defer al.mu.Unlock()
	return slices.SortedFunc(maps.Keys(al.entries), func(x, y model.AttachmentKey) int {
		return strings.Compare(x.String(), y.String())
	})
}

// exhausted returns the first range without a free address.
func (al *allocations) exhausted(cidrs []netip.Prefix) (netip.Prefix, bool) {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, cidr := range cidrs {
		if float64(al.usedLocked(cidr)) >= capacity(cidr) {
			return cidr, true
		}
	}
	return netip.Prefix{}, false
}

// used is how many addresses of a range are allocated.
func (al *allocations) used(cidr netip.Prefix) int {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.usedLocked(cidr)
}

func (al *allocations) usedLocked(cidr netip.Prefix) (n int) {
	for ip := range al.ips {
		if cidr.Contains(ip) {
			n++
		}
	}
	return n
}

// capacity is how many addresses of a range pods can have. Reserved are the network address, the gateway and, in IPv4,
// the broadcast address.
func capacity(cidr netip.Prefix) float64 {
	reserved := 2.0
	if cidr.Addr().Is4() {
		reserved = 3
	}
	return max(math.Exp2(float64(cidr.Addr().BitLen()-cidr.Bits()))-reserved, 0)
}

func (al *allocations) nextPort() (uint32, error) {
	const count = model.PortPodMax - model.PortPodMin + 1
	for i := range count {
		p := model.PortPodMin + (al.lastPort-model.PortPodMin+1+i)%count
		if _, used := al.ports[p]; !used {
			return p, nil
		}
	}
	return 0, errorf(ErrPoolExhausted, "all %d OpenFlow ports for pods are in use on this node", count)
}

// freeName returns the name of the node's end of the veth: readable and unique on the node.
func (al *allocations) freeName(pod model.PodRef, key model.AttachmentKey) (string, error) {
	for salt := range 100 {
		name := hostIfName(pod, key, salt)
		if _, used := al.names[name]; !used {
			return name, nil
		}
	}
	return "", errorf(cnitypes.ErrInternal, "no free link name for %s", key)
}

// hostIfName is up to eight characters of the pod's name, a hyphen and six hexadecimal digits: at most 15, the limit of
// Linux (IFNAMSIZ).
func hostIfName(pod model.PodRef, key model.AttachmentKey, salt int) string {
	// In sysctl names a dot is a path separator.
	readable := strings.ReplaceAll(pod.Name, ".", "-")
	readable = strings.TrimRight(readable[:min(8, len(readable))], "-")
	return readable + nameSuffix(key, salt)
}

func nameSuffix(key model.AttachmentKey, salt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", key, salt))
	return "-" + hex.EncodeToString(sum[:3])
}

// mayBeNameOf reports whether hostIfName returns this name for the attachment with some pod name.
func mayBeNameOf(name string, key model.AttachmentKey) bool {
	return strings.HasSuffix(name, nameSuffix(key, 0))
}

// macFor derives the MAC from an address; it is as unique as the address.
func macFor(ips []netip.Addr) model.MAC {
	for _, ip := range ips {
		if ip.Is4() {
			a := ip.As4()
			return model.MAC{0x0a, 0x58, a[0], a[1], a[2], a[3]}
		}
	}
	var h [sha256.Size]byte
	if len(ips) > 0 {
		a := ips[0].As16()
		h = sha256.Sum256(a[:])
	}
	return model.MAC{0x0a, 0x58, h[0], h[1], h[2], h[3]}
}

// allocate returns the next free address of a range in rotation that was not freed recently, or else the one that was
// freed first. The first address of the range is the gateway's and never allocated.
func (al *allocations) allocate(key model.AttachmentKey, cidr netip.Prefix) (netip.Addr, error) {
	r := allocator.Range{Subnet: cnitypes.IPNet{
		IP:   cidr.Masked().Addr().AsSlice(),
		Mask: net.CIDRMask(cidr.Bits(), cidr.Addr().BitLen()),
	}}
	if err := r.Canonicalize(); err != nil {
		return netip.Addr{}, errorf(ErrPoolExhausted, "pod CIDR %s of this node: %v", cidr, err)
	}
	get := func(avoid bool, ip net.IP) (*current.IPConfig, error) {
		ips := &store{al: al, cidr: cidr.Masked(), avoid: avoid}
		return allocator.NewIPAllocator(&allocator.RangeSet{r}, ips, 0).Get(key.ContainerID, key.IfName, ip)
	}
	conf, err := get(true, nil)
	for _, ip := range al.freed.in(cidr) {
		if err == nil {
			break
		}
		conf, err = get(false, ip.AsSlice())
	}
	if err != nil {
		// The store never fails and the key is new, so the range is exhausted.
		return netip.Addr{}, errorf(ErrPoolExhausted, "no address is left in pod CIDR %s of this node (%v)", cidr, err)
	}
	ip, ok := netip.AddrFromSlice(conf.Address.IP)
	if !ok {
		return netip.Addr{}, fmt.Errorf("host-local's allocator returned %v", conf.Address)
	}
	return ip.Unmap(), nil
}

func (al *allocations) freeIPs(key model.AttachmentKey) {
	for ip, owner := range al.ips {
		if owner == key {
			delete(al.ips, ip)
		}
	}
}

// retireIPs is freeIPs for addresses that a pod may have used: they are reused last.
func (al *allocations) retireIPs(key model.AttachmentKey) {
	for ip, owner := range al.ips {
		if owner == key {
			al.freed.add(ip)
		}
	}
	al.freeIPs(key)
}

// store is the storage backend of host-local's allocator, on top of allocations. The callers hold the mutex, so Lock
// does nothing.
type store struct {
	al   *allocations
	cidr netip.Prefix
	// avoid skips addresses that were freed recently.
	avoid bool
}

func (s *store) Lock() error   { return nil }
func (s *store) Unlock() error { return nil }
func (s *store) Close() error  { return nil }

func (s *store) Reserve(id, ifname string, ip net.IP, _ string) (bool, error) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false, errors.New("not an IP address: " + ip.String())
	}
	addr = addr.Unmap()
	if _, used := s.al.ips[addr]; used || s.avoid && s.al.freed.has[addr] {
		return false, nil
	}
	s.al.freed.remove(addr)
	s.al.ips[addr] = model.AttachmentKey{ContainerID: id, IfName: ifname}
	s.al.lastIP[s.cidr] = addr
	return true, nil
}

// lastIPs are the most recently allocated addresses, one of each range, sorted. It is empty before the first
// allocation.
func (al *allocations) lastIPs() []netip.Addr {
	al.mu.Lock()
	defer al.mu.Unlock()
	var last []netip.Addr
	for _, ip := range al.resume {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(al.lastIP)), func(cidr netip.Prefix) bool {
			return cidr.Contains(ip)
		}) {
			last = append(last, ip)
		}
	}
	return slices.SortedFunc(slices.Values(slices.AppendSeq(last, maps.Values(al.lastIP))), netip.Addr.Compare)
}

// LastReservedIP is the address after which the allocator continues: the last one that this agent or the previous one
// allocated or, without a record, the highest address in use.
func (s *store) LastReservedIP(string) (net.IP, error) {
	last := s.al.lastIP[s.cidr]
	for _, ip := range s.al.resume {
		if !last.IsValid() && s.cidr.Contains(ip) {
			last = ip
		}
	}
	if !last.IsValid() {
		for ip := range s.al.ips {
			if s.cidr.Contains(ip) && (!last.IsValid() || last.Less(ip)) {
				last = ip
			}
		}
	}
	return last.AsSlice(), nil
}

func (s *store) ReleaseByID(id, ifname string) error {
	s.al.freeIPs(model.AttachmentKey{ContainerID: id, IfName: ifname})
	return nil
}

func (s *store) GetByID(id, ifname string) []net.IP {
	var ips []net.IP
	for ip, owner := range s.al.ips {
		if owner == (model.AttachmentKey{ContainerID: id, IfName: ifname}) {
			ips = append(ips, ip.AsSlice())
		}
	}
	return ips
}
