package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
)

// tracker is a connection tracker in memory.
type tracker struct {
	mu      sync.Mutex
	entries []openflow.Connection
	err     error // of reading, after all entries
	read    map[uint16]int
	reading chan struct{} // when set, reading waits for it to be closed
	begun   chan struct{} // when set, closed by the first reading that waits
}

func (k *tracker) Connections(ctx context.Context, zone uint16, each func(openflow.Connection)) error {
	k.mu.Lock()
	k.read[zone]++
	list, err, wait, begun := slices.Clone(k.entries), k.err, k.reading, k.begun
	k.begun = nil
	k.mu.Unlock()
	if wait != nil {
		if begun != nil {
			close(begun)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, c := range list {
		if c.Zone == zone {
			each(c)
		}
	}
	return err
}

func (k *tracker) Deny(_ context.Context, denied []openflow.Connection) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range denied {
		i := slices.Index(k.entries, c)
		if i < 0 {
			return errors.New("denied twice")
		}
		k.entries[i].Mark &^= uint32(flows.MarkAllowed)
	}
	return nil
}

func (k *tracker) Allow(_ context.Context, allowed []openflow.Connection) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range allowed {
		i := slices.Index(k.entries, c)
		if i < 0 {
			return errors.New("allowed twice")
		}
		k.entries[i].Mark = k.entries[i].Mark&^uint32(flows.MarkDenied) | uint32(flows.MarkAllowed)
	}
	return nil
}

func (k *tracker) Remove(_ context.Context, c openflow.Connection) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.Index(k.entries, c)
	if i < 0 {
		return errors.New("removed twice")
	}
	k.entries = slices.Delete(k.entries, i, i+1)
	return nil
}

// allowed counts the connections that have the mark.
func (k *tracker) allowed() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.entries {
		if c.Mark&uint32(flows.MarkAllowed) != 0 {
			n++
		}
	}
	return n
}

// node1 has one pod, 10.244.1.2, and isolates it.
func node1() *model.Snapshot {
	a := model.Attachment{ContainerID: "a", IfName: "eth0", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	s := &model.Snapshot{
		Self:        model.Node{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Attachments: map[model.AttachmentKey]model.Attachment{a.Key(): a},
		Policies: map[model.PolicyID]model.Policy{model.NetworkPolicy("ns", "p"): {ID: model.NetworkPolicy("ns", "p"),
			Ingress: &model.PolicySide{Pods: a.IPs}}},
	}
	s.Paths = nodepath.Resolve(s)
	return s
}

func udp(zone uint16, from, to string) openflow.Connection {
	at := netip.MustParseAddrPort
	return openflow.Connection{Zone: zone, Protocol: openflow.IPProtoUDP, Source: at(from), Destination: at(to),
		Endpoint: at(to), Mark: uint32(flows.MarkAllowed)}
}

func newBench(entries ...openflow.Connection) (*tracker, *sweeper) {
	k := &tracker{entries: entries, read: map[uint16]int{}}
	s := newSweeper(k, func() (*model.Snapshot, map[model.Owner]error) {
		return node1(), nil
	}, slog.New(slog.DiscardHandler))
	return k, s
}

// TestSweep takes the mark from denied connections, removes connections of detached pods in all zones, and reads the
// zones other than Zone only after a pod was detached.
func TestSweep(t *testing.T) {
	denied, outgoing := udp(flows.Zone, "192.0.2.1:1", "10.244.1.2:1"), udp(flows.Zone, "10.244.1.2:1", "192.0.2.1:1")
	gone, goneSource := udp(flows.Zone, "10.244.1.9:1", "192.0.2.1:1"), udp(flows.SourceZone, "10.244.1.9:1",
		"192.0.2.1:1")
	goneCopy := udp(flows.EndpointZone, "10.244.1.9:1", "10.244.2.2:53")
	unmarked := denied
	unmarked.Mark = 0
	k, s := newBench(denied, outgoing, goneSource)
	if err := s.sync(t.Context()); err != nil || len(k.read) > 0 {
		t.Errorf("without a request: %v, read %v", err, k.read)
	}
	s.request(programmer.SweepRequest{})
	if err := s.sync(t.Context()); err != nil || !slices.Equal(k.entries, []openflow.Connection{unmarked, outgoing,
		goneSource}) || k.read[flows.SourceZone] != 0 {
		t.Errorf("after a policy's change: %v, %v are left, read %v", err, k.entries, k.read)
	}
	for _, r := range []programmer.SweepRequest{{Start: true}, {Gone: []netip.Addr{gone.Source.Addr()}}} {
		k.entries = []openflow.Connection{gone, outgoing, goneSource, goneCopy}
		s.request(r)
		if err := s.sync(t.Context()); err != nil || !slices.Equal(k.entries, []openflow.Connection{outgoing}) {
			t.Errorf("%+v: %v, %v are left", r, err, k.entries)
		}
	}
}

// TestSweepAllowsAgain: a change that only allows more matters where something is denied. Then what is allowed gets
// its mark back, and the next such change needs no reading.
func TestSweepAllowsAgain(t *testing.T) {
	again, denied := udp(flows.Zone, "10.244.1.2:1", "192.0.2.1:1"), udp(flows.Zone, "192.0.2.1:1", "10.244.1.2:1")
	again.Protocol, again.Mark, denied.Mark = openflow.IPProtoTCP, uint32(flows.MarkDenied), uint32(flows.MarkDenied)
	k, s := newBench(again, denied)
	ask := func(what string, r programmer.SweepRequest, readings int) {
		t.Helper()
		before := k.read[flows.Zone]
		s.request(r)
		if err := s.sync(t.Context()); err != nil || k.read[flows.Zone]-before != readings {
			t.Errorf("%s: %v, %d readings, want %d", what, err, k.read[flows.Zone]-before, readings)
		}
	}
	ask("nothing was denied so far", programmer.SweepRequest{Wider: true}, 0)
	ask("policies may deny", programmer.SweepRequest{}, 1)
	want := again
	want.Mark = uint32(flows.MarkAllowed)
	if !slices.Equal(k.entries, []openflow.Connection{want, denied}) {
		t.Errorf("left are %v", k.entries)
	}
	ask("one is denied", programmer.SweepRequest{Wider: true}, 1)
	k.entries = k.entries[:1]
	ask("it has gone meanwhile", programmer.SweepRequest{Wider: true}, 1)
	ask("none is denied", programmer.SweepRequest{Wider: true}, 0)
}

// TestSweepIsBounded: much to end takes several rounds, and requests that come together one.
func TestSweepIsBounded(t *testing.T) {
	k, s := newBench()
	for i := range maxEnded + 10 {
		k.entries = append(k.entries, udp(flows.Zone, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"),
			uint16(i+1)).String(), "10.244.1.2:1"))
	}
	s.request(programmer.SweepRequest{})
	s.request(programmer.SweepRequest{})
	if err := s.sync(t.Context()); err != nil || k.allowed() != 0 || k.read[flows.Zone] != 2 {
		t.Errorf("%v, %d are left after %d readings", err, k.allowed(), k.read[flows.Zone])
	}
	s.request(programmer.SweepRequest{})
	s.free = time.Now().Add(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.sync(ctx); err == nil || k.read[flows.Zone] != 2 {
		t.Errorf("no pause: %v, %d readings", err, k.read[flows.Zone])
	}
}

// TestSweepFails: what can be read is ended, the error is told, and the sweep comes again.
func TestSweepFails(t *testing.T) {
	k, s := newBench(udp(flows.Zone, "192.0.2.1:1", "10.244.1.2:1"))
	k.err = errors.New("a line cannot be parsed")
	s.request(programmer.SweepRequest{Gone: []netip.Addr{netip.MustParseAddr("10.244.1.9")}})
	if err := s.sync(t.Context()); err == nil || k.allowed() != 0 {
		t.Errorf("%v, %d are left", err, k.allowed())
	}
	k.err = nil
	if err := s.sync(t.Context()); err != nil || k.read[flows.SourceZone] != 2 {
		t.Errorf("tried again: %v, read %v", err, k.read)
	}
}

// TestAddressIsClean: a pod does not get an address while connections of the pod that had it before are being removed.
func TestAddressIsClean(t *testing.T) {
	k, s := newBench(udp(flows.Zone, "10.244.1.9:1", "192.0.2.1:1"))
	ip := []netip.Addr{netip.MustParseAddr("10.244.1.9")}
	if err := s.await(t.Context(), ip); err != nil {
		t.Fatal(err)
	}
	s.request(programmer.SweepRequest{Gone: ip})
	if err := s.await(t.Context(), []netip.Addr{netip.MustParseAddr("10.244.1.8")}); err != nil {
		t.Fatal(err)
	}
	clean := func() <-chan int {
		left := make(chan int, 1)
		go func() {
			if err := s.await(t.Context(), ip); err != nil {
				t.Error(err)
			}
			left <- k.allowed()
		}()
		return left
	}
	first := clean() // may begin to wait before the sweep begins, or while it runs
	begun := make(chan struct{})
	k.reading, k.begun = make(chan struct{}), begun
	done := make(chan error, 1)
	go func() { done <- s.sync(t.Context()) }()
	select {
	case <-begun: // s.running is set before the first reading
	case <-time.After(time.Minute):
		t.Fatal("the sweep has not begun after a minute")
	}
	second := clean()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.await(ctx, ip); err == nil {
		t.Error("the address is given away while its connections are there")
	}
	close(k.reading)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if a, b := <-first, <-second; a != 0 || b != 0 {
		t.Errorf("%d and %d connections were left when the address was free", a, b)
	}
}
