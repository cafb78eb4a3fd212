package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/service"
	"github.com/weft-cni/weft/pkg/state"
	"github.com/weft-cni/weft/test/bench/result"
)

// programming measures how fast an empty switch is programmed: by Weft from objects, and with the flows and groups of
// that as text that ovs-ofctl sends in one bundle.
type programming struct {
	ovs      *vswitch.Instance
	bundles  string // the directory of the texts
	datapath string
	sets     []objectSet
	stop     func() error
}

// objectSet are objects, as changes of the snapshot.
type objectSet struct {
	name    string
	changes []state.Change
}

// objectSets are what is programmed.
func (o options) objectSets() []objectSet {
	return []objectSet{
		{"program/services", append(baseChanges(), serviceChanges(o.Services)...)},
		{"program/policies", append(baseChanges(), policyChanges(o.Policies)...)},
	}
}

// programBridge is the bridge that is programmed; countedBridge is its name in the socket that counts bytes.
const (
	programBridge = "wb-prog"
	countedBridge = "counted"
)

// startProgramming starts an Open vSwitch.
func (o options) startProgramming(ctx context.Context) (_ *programming, err error) {
	dir, err := os.MkdirTemp("", "wp") // short: it holds sockets
	if err != nil {
		return nil, err
	}
	p := &programming{bundles: dir, datapath: o.Datapath, sets: o.objectSets()}
	p.stop = func() error {
		var err error
		if p.ovs != nil {
			_, err = p.ovs.Run(context.WithoutCancel(ctx), "ovs-vsctl", ovsTimeout, "--if-exists", "del-br", programBridge)
			err = errors.Join(err, p.ovs.Stop())
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("prepare programming: %w", err), p.stop())
		}
	}()
	// One network namespace has room for the userspace datapath of one ovs-vswitchd, so this one has its own.
	if p.ovs, err = vswitch.Start(ctx, vswitch.Config{RunDir: filepath.Join(dir, "run"), DataDir: filepath.Join(dir,
		"data"), Enter: []string{"unshare", "--net", "--"}}); err != nil {
		return nil, err
	}
	_, err = p.ovs.Run(ctx, "ovs-vsctl", ovsTimeout, "add-br", programBridge, "--", "set", "bridge", programBridge,
		"datapath_type="+o.Datapath, "fail_mode=secure", "protocols=OpenFlow10,OpenFlow13,OpenFlow15")
	return p, err
}

// cases are a case for each set of objects. Each turn of Weft's writes the text that the raw bundle has.
func (p *programming) cases() []benchCase {
	var cases []benchCase
	for _, set := range p.sets {
		cases = append(cases, benchCase{name: set.name, entries: []entry{
			{result.Weft, func(ctx context.Context, _ int) (values, error) {
				took, err := p.fromObjects(ctx, set, programBridge)
				if err != nil {
					return nil, err
				}
				lines, err := p.writeBundle(ctx, set)
				return values{"programmed": float64(lines) / took.Seconds()}, err
			}},
			{result.Raw, func(ctx context.Context, _ int) (values, error) {
				lines, err := p.ensureBundle(ctx, set)
				if err != nil {
					return nil, err
				}
				took, err := p.fromText(ctx, set, programBridge)
				return values{"programmed": float64(lines) / took.Seconds()}, err
			}},
		}})
	}
	return cases
}

// fromObjects programs the empty bridge from objects and returns how long that took.
func (p *programming) fromObjects(ctx context.Context, set objectSet, bridge string) (took time.Duration, err error) {
	if err := p.empty(ctx); err != nil {
		return 0, err
	}
	kind := ofswitch.Userspace
	if p.datapath == "system" {
		kind = ofswitch.Kernel
	}
	sw := ofswitch.New(p.ovs.RunDir(), p.ovs.RunDir(), bridge, kind)
	loop := programmer.New(programmer.Options{Node: selfName, Switch: sw, Log: slog.New(slog.DiscardHandler)})
	serving, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	var loopErr error
	defer func() {
		cancel()
		running.Wait()
		err = errors.Join(err, loopErr, sw.Close())
	}()
	begin := time.Now()
	for _, c := range set.changes {
		loop.Submit(c)
	}
	revision := loop.Submitted()
	running.Go(func() { loopErr = loop.Run(serving) })
	if err := loop.Programmed(ctx, revision); err != nil {
		return 0, err
	}
	took = time.Since(begin)
	if _, quarantined := loop.Installed(); len(quarantined) > 0 {
		return 0, fmt.Errorf("%s: %d objects are quarantined", set.name, len(quarantined))
	}
	return took, nil
}

// fromText sends the text in one bundle to the empty bridge.
func (p *programming) fromText(ctx context.Context, set objectSet, bridge string) (time.Duration, error) {
	if err := p.empty(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err := p.ovs.Run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "bundle",
		"unix:"+filepath.Join(p.ovs.RunDir(), bridge+".mgmt"), p.file(set))
	return time.Since(begin), err
}

func (p *programming) empty(ctx context.Context) error {
	for _, what := range []string{"del-flows", "del-groups"} {
		if _, err := p.ovs.Run(ctx, "ovs-ofctl", "-O", "OpenFlow15", what, programBridge); err != nil {
			return err
		}
	}
	return nil
}

func (p *programming) file(set objectSet) string {
	return filepath.Join(p.bundles, strings.ReplaceAll(set.name, "/", "-"))
}

// ensureBundle makes sure that there is the text of a set, and returns how many lines it has.
func (p *programming) ensureBundle(ctx context.Context, set objectSet) (int, error) {
	text, err := os.ReadFile(p.file(set))
	if err == nil {
		return strings.Count(string(text), "\n"), nil
	}
	if _, err := p.fromObjects(ctx, set, programBridge); err != nil {
		return 0, err
	}
	return p.writeBundle(ctx, set)
}

// writeBundle writes what the bridge has as the text of a bundle, and returns how many lines that is.
func (p *programming) writeBundle(ctx context.Context, set objectSet) (int, error) {
	has, err := p.contents(ctx)
	if err != nil {
		return 0, err
	}
	// Groups come first: the switch looks at each line as if those before it were done.
	var text strings.Builder
	for _, g := range has.Groups {
		fmt.Fprintf(&text, "group add_or_mod %s\n", g)
	}
	for _, f := range has.Flows {
		fmt.Fprintf(&text, "flow add %s\n", f.Flow)
	}
	return len(has.Groups) + len(has.Flows), os.WriteFile(p.file(set), []byte(text.String()), 0o600)
}

func (p *programming) contents(ctx context.Context) (openflow.Contents, error) {
	return ofswitch.New(p.ovs.RunDir(), p.ovs.RunDir(), programBridge, ofswitch.Userspace).Dump(ctx)
}

// counts programs each set once more, through a socket that counts bytes.
func (p *programming) counts(ctx context.Context) (found []result.Count, err error) {
	var sent atomic.Int64
	proxy, err := p.proxy(ctx, &sent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	for _, set := range p.sets {
		if _, err := p.fromObjects(ctx, set, countedBridge); err != nil {
			return nil, err
		}
		byWeft := sent.Swap(0)
		if _, err := p.writeBundle(ctx, set); err != nil {
			return nil, err
		}
		has, err := p.contents(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := p.fromText(ctx, set, countedBridge); err != nil {
			return nil, err
		}
		text, err := os.Stat(p.file(set))
		if err != nil {
			return nil, err
		}
		count := func(system, name string, value int64) {
			found = append(found, result.Count{Case: set.name, System: system, Name: name, Value: int(value)})
		}
		count(result.Weft, "flows", int64(len(has.Flows)))
		count(result.Weft, "groups", int64(len(has.Groups)))
		count(result.Weft, "bytes sent", byWeft)
		count(result.Raw, "flows", int64(len(has.Flows)))
		count(result.Raw, "groups", int64(len(has.Groups)))
		count(result.Raw, "bytes sent", sent.Swap(0))
		count(result.Raw, "bytes of text", text.Size())
	}
	return found, nil
}

// proxy passes OpenFlow connections on to the bridge, and counts what goes there.
func (p *programming) proxy(ctx context.Context, sent *atomic.Int64) (io.Closer, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", filepath.Join(p.ovs.RunDir(), countedBridge+".mgmt"))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("unix", filepath.Join(p.ovs.RunDir(), programBridge+".mgmt"))
				if err != nil {
					return // the client says that its connection was closed
				}
				defer server.Close()
				go func() {
					_, _ = io.Copy(client, server) // until one of them ends
					_ = client.Close()
				}()
				_, _ = io.Copy(io.MultiWriter(counter{sent}, server), client)
			}()
		}
	}()
	return listener, nil
}

// counter counts what is written.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// The node that is programmed, with pods that have no port: programming does not ask for one.
const selfName = "bench"

var selfCIDR = netip.MustParsePrefix("10.244.0.0/24")

// localPods is how many pods the node has.
const localPods = 50

// baseChanges are what every node has.
func baseChanges() []state.Change {
	changes := []state.Change{
		state.SetTransport{Transport: model.Tunnel(model.VXLAN)},
		state.SetNode{Node: model.Node{Name: selfName, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			PodCIDRs: []netip.Prefix{selfCIDR}}},
		state.SetServiceCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}},
		state.SetNamespace{Namespace: policy.Namespace{Name: "ns", Labels: map[string]string{"team": "a"}}},
	}
	for i := range localPods {
		name, addr := fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{10, 244, 0, byte(10 + i)})
		changes = append(changes, state.SetPod{Pod: policy.Pod{Namespace: "ns", Name: name, UID: name, Node: selfName,
			Labels: map[string]string{"app": fmt.Sprint("app", i%10)}, Addrs: []netip.Addr{addr}}},
			state.SetAttachment{Attachment: model.Attachment{ContainerID: name, IfName: "eth0", OFPort: uint32(100 + i),
				Pod: model.PodRef{Namespace: "ns", Name: name, UID: name}, IPs: []netip.Addr{addr},
				MAC: model.MAC{0x0a, 0x58, 10, 244, 0, byte(10 + i)}}})
	}
	return changes
}

// serviceChanges are Services of two endpoints each.
func serviceChanges(count int) []state.Change {
	var changes []state.Change
	for i := range count {
		name := fmt.Sprint("ns/s", i)
		slice := service.Slice{Name: name, Service: name, Ports: []service.SlicePort{{Name: "http", Protocol: model.TCP,
			Port: 8080}}}
		for j := range 2 {
			slice.Endpoints = append(slice.Endpoints, service.Endpoint{Ready: true, Serving: true,
				Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(10 + (i+j)%localPods)})})
		}
		changes = append(changes, state.SetService{Service: &service.Service{Name: name,
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports:      []service.Port{{Name: "http", Protocol: model.TCP, Port: 80}}}}, state.SetSlice{Slice: &slice})
	}
	return changes
}

// policyChanges are policies that select an application and allow another one and a block, at a port of their own.
func policyChanges(count int) []state.Change {
	var changes []state.Change
	selector := func(app int) policy.Selector {
		return policy.Selector{MatchLabels: map[string]string{"app": fmt.Sprint("app", app%10)}}
	}
	for i := range count {
		peer := selector(i + i/10)
		changes = append(changes, state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: fmt.Sprint("p", i),
			PodSelector: selector(i), Types: []policy.Direction{policy.Ingress},
			Ingress: []policy.Rule{{Peers: []policy.Peer{{PodSelector: &peer}, {IPBlock: &policy.IPBlock{
				CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24)}}},
				Ports: []policy.Port{{Number: uint16(8000 + i%2000)}}}}}})
	}
	return changes
}
