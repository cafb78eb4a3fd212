//go:build integration

package cni_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

const (
	churnStep = "churn"
	// churnCIDR has 61 addresses for pods.
	churnCIDR, churnRoom = "10.20.0.0/26", 61
	churnWorkers         = 8
	// churnHold is how many pods a worker has at most.
	churnHold = 3
)

// runChurnAgent is an agent whose API server reports every pod: CNI server, flow loop and repair of the bridge, on a
// real switch. It runs until the test kills it.
func runChurnAgent(t *testing.T, dir string) {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // the test process has ended
	}()
	n := &node{t: t, ctx: t.Context(), dir: dir, socket: filepath.Join(dir, "s", "cni.sock")}
	n.connect()
	sw := ofswitch.New(filepath.Join(dir, "run"), dir, model.BridgeName, ofswitch.Userspace)
	loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: n.log()})
	loop.Submit(state.SetNode{Node: model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1")},
		PodCIDRs: prefixes(churnCIDR)}})
	server := cni.NewServer(cni.Config{
		Socket: n.socket, Ports: n.db, Flows: knownPods{loop}, Log: n.log(), FilterPodLinks: n.filterPodLinks,
		Settings: func() cni.Settings {
			return cni.Settings{MTU: 1400, UserspaceDatapath: true, PodCIDRs: prefixes(churnCIDR)}
		},
	})
	var kept []model.Attachment
	n.eventually("what an earlier agent left is recovered", func() (ok bool) {
		var err error
		kept, err = server.Recover(n.ctx)
		return err == nil
	})
	for _, a := range kept {
		knownPods{loop}.submit(a)
		loop.Submit(state.SetAttachment{Attachment: a})
	}
	go func() { check(t, loop.Run(n.ctx)) }()
	go func() {
		for {
			if known, err := server.Known(); err == nil {
				b := bridge
				b.Pods = known
				_, err := n.db.EnsureBridge(n.ctx, b)
				if _, restoreErr := server.RestorePorts(n.ctx); errors.Join(err, restoreErr) == nil {
					loop.Verify()
				}
			}
			select {
			case <-n.db.Changes():
			case <-time.After(time.Second):
			}
		}
	}()
	check(t, server.Serve(n.ctx))
}

// knownPods is a loop to which the API server has reported each pod.
type knownPods struct{ *programmer.Loop }

func (k knownPods) submit(a model.Attachment) {
	k.Submit(state.SetPod{Pod: policy.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, UID: a.Pod.UID, Node: "n1"}})
}

func (k knownPods) Attach(ctx context.Context, a model.Attachment) error {
	k.submit(a)
	return k.Loop.Attach(ctx, a)
}

// churn is a runtime that adds and deletes pods, and records their addresses.
type churn struct {
	*node
	list  *libcni.NetworkConfigList
	agent *exec.Cmd

	mu     sync.Mutex
	random *rand.Rand
	held   map[netip.Addr]string // container ID by address
	// given counts allocated addresses; freed has the count at which the running agent freed an address.
	given int
	freed map[netip.Addr]int
	// kills is incremented before and after each kill of the agent: it is odd while no agent listens.
	kills int
	stats map[string]int
}

// TestChurn adds and deletes WEFT_CHURN pods (150 by default) on a real switch while plugins, agents and ovs-vswitchd
// are killed. No address belongs to two pods at a time or is reused at once; in the end nothing is left, and every
// address can be allocated.
func TestChurn(t *testing.T) {
	operations := 150
	if text := os.Getenv("WEFT_CHURN"); text != "" {
		var err error
		operations, err = strconv.Atoi(text)
		check(t, err)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WEFT_CHURN_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		check(t, err)
	}
	t.Logf("%d operations, seed %d", operations, seed)
	n := newNodeFor(t, 2*time.Minute+time.Duration(operations)*time.Second, churnCIDR)
	check(t, n.stop())
	c := &churn{
		node: n, list: n.conf("1.0.0", ""), random: rand.New(rand.NewPCG(seed, 1)),
		held: map[netip.Addr]string{}, freed: map[netip.Addr]int{}, stats: map[string]int{},
	}
	c.startAgent()
	t.Cleanup(func() { c.killAgent() })

	start := time.Now()
	stopChaos := make(chan struct{})
	var chaos, workers sync.WaitGroup
	chaos.Go(func() { c.chaos(stopChaos) })
	for range churnWorkers {
		workers.Go(func() { c.work(operations / churnWorkers) })
	}
	workers.Wait()
	close(stopChaos)
	chaos.Wait()
	t.Logf("%v in %v", c.stats, time.Since(start))
	if c.stats["agents killed"] == 0 || c.stats["ADDs killed"] == 0 || c.stats["switches restarted"] == 0 {
		t.Errorf("nothing was disturbed: %v", c.stats)
	}
	c.wantNothingLeft()

	// A leaked address would be missing: each address is allocated once, and then the pool is exhausted.
	var pods []*pod
	for range churnRoom {
		p := c.newPod()
		if r, err := c.add(c.list, p); err != nil {
			t.Errorf("ADD %d of %d: %v", len(pods)+1, churnRoom, err)
		} else {
			c.take(p, r)
		}
		pods = append(pods, p)
	}
	extra := c.newPod()
	_, err := c.add(c.list, extra)
	wantCode(t, err, cni.ErrPoolExhausted, churnCIDR)
	c.remove(extra)
	c.remove(pods[0])
	freed := c.newPod()
	r, err := c.add(c.list, freed)
	check(t, err)
	c.mu.Lock()
	clear(c.freed) // only one address is left to allocate
	c.mu.Unlock()
	c.take(freed, r)
	for _, p := range append(pods[1:], freed) {
		c.remove(p)
	}
	c.wantNothingLeft()
}

func (c *churn) roll(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.IntN(n)
}

func (c *churn) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats[what]++
}

func (c *churn) startAgent() {
	a := exec.Command("/proc/self/exe", "-test.run=^TestAgentProcess$", "-test.timeout=0", "-test.v")
	a.Env = append(os.Environ(), "WEFT_CNI_TEST_AGENT="+churnStep, "WEFT_CNI_TEST_DIR="+c.dir)
	_, err := a.StdinPipe() // the pipe closes when this process ends
	check(c.t, err)
	log, err := os.OpenFile(filepath.Join(c.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(c.t, err)
	defer log.Close()
	a.Stdout, a.Stderr = log, log
	check(c.t, a.Start())
	c.agent = a
	err = testenv.Poll(c.t.Context(), 30*time.Second, func(context.Context) error {
		conn, err := net.Dial("unix", c.socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		c.t.Errorf("the agent does not listen: %v", err)
	}
}

func (c *churn) killAgent() {
	_ = c.agent.Process.Kill()
	_ = c.agent.Wait() // it was killed
}

// chaos kills the agent and restarts ovs-vswitchd at random, at least once each, until stop is closed. Both run when it
// returns.
func (c *churn) chaos(stop <-chan struct{}) {
	for i := 0; ; i++ {
		pause := time.After(testenv.Patience(time.Duration(200+c.roll(1000)) * time.Millisecond))
		select {
		case <-pause:
		case <-stop:
			if i > 1 {
				return
			}
		}
		if i == 1 || i > 1 && c.roll(4) == 0 {
			if err := errors.Join(c.ovs.StopDaemon(), c.ovs.StartDaemon(c.ctx)); err != nil {
				c.t.Errorf("restart ovs-vswitchd: %v", err)
				return
			}
			c.count("switches restarted")
			continue
		}
		c.mu.Lock()
		c.kills++
		clear(c.freed) // the next agent does not know the addresses that this one freed
		c.mu.Unlock()
		c.killAgent()
		time.Sleep(time.Duration(c.roll(300)) * time.Millisecond) // no agent listens meanwhile
		c.startAgent()
		c.mu.Lock()
		c.kills++
		c.mu.Unlock()
		c.count("agents killed")
	}
}

// work adds and deletes pods as a runtime does: it deletes a failed pod until that succeeds, and never reuses it. An
// ADD that failed because agent or switch were not available does not count.
func (c *churn) work(operations int) {
	var pods []*pod
	for done := 0; done < operations; {
		if c.ctx.Err() != nil {
			c.t.Errorf("out of time: %v", context.Cause(c.ctx))
			break
		}
		if len(pods) == churnHold || len(pods) > 0 && c.roll(3) == 0 {
			i := c.roll(len(pods))
			c.remove(pods[i])
			pods = slices.Delete(pods, i, i+1)
			done++
			continue
		}
		p := c.newPod()
		ctx, cancel := context.WithCancel(c.ctx)
		if c.roll(8) == 0 { // libcni kills the plugin when its context ends
			time.AfterFunc(time.Duration(c.roll(60))*time.Millisecond, cancel)
		}
		r, err := c.libcni.AddNetworkList(ctx, c.list, p.rt)
		killed := ctx.Err() != nil
		cancel()
		if err != nil {
			c.count("ADDs failed")
			if killed {
				done++
				c.count("ADDs killed")
			} else if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code != types.ErrTryAgainLater &&
				e.Code != types.ErrIOFailure {
				c.t.Errorf("ADD: %v", err)
			}
			c.remove(p)
			time.Sleep(time.Duration(50+c.roll(200)) * time.Millisecond) // a kubelet waits longer
			continue
		}
		result, err := current.NewResultFromResult(r)
		if err != nil {
			c.t.Error(err)
		}
		done++
		c.count("ADDs")
		c.take(p, result)
		pods = append(pods, p)
	}
	for _, p := range pods {
		c.remove(p)
	}
}

func (c *churn) newPod() *pod {
	netns, err := testutils.NewNS()
	if err != nil {
		c.t.Error(err)
		panic(err) // without namespaces there is no test
	}
	id := fmt.Sprintf("c%d", containers.Add(1))
	return &pod{netns, &libcni.RuntimeConf{
		ContainerID: id, NetNS: netns.Path(), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod-" + id},
			{"K8S_POD_UID", "uid-" + id}},
	}}
}

// take records the owner of the addresses.
func (c *churn) take(p *pod, r *current.Result) {
	// A freed address is reused only when all others have been allocated that neither pods hold nor running ADDs have
	// reserved.
	const soonest = churnRoom - churnWorkers*(churnHold+2)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); !ok {
			c.t.Errorf("address %v", ip)
		}
		if other, used := c.held[addr]; used {
			c.t.Errorf("address %s is %s's and was given to %s", addr, other, p.rt.ContainerID)
		}
		if at, was := c.freed[addr]; was && c.given-at < soonest {
			c.t.Errorf("address %s was given again after %d others", addr, c.given-at)
		}
		c.given++
		c.held[addr] = p.rt.ContainerID
	}
}

// remove is a runtime's handling of a pod that ends, after any result of its ADD: DEL until it succeeds, then delete
// the namespace.
func (c *churn) remove(p *pod) {
	c.mu.Lock()
	begun := c.kills
	c.mu.Unlock()
	var err error
	tries := 0
	for ; tries < 60; tries++ {
		if err = c.libcni.DelNetworkList(c.ctx, c.list, p.rt); err == nil || c.ctx.Err() != nil {
			break
		}
		c.count("DELs failed")
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		c.t.Errorf("DEL: %v", err)
	}
	c.mu.Lock()
	for addr, owner := range c.held {
		if owner == p.rt.ContainerID {
			delete(c.held, addr)
			// Otherwise an earlier agent may have freed it.
			if tries == 0 && begun%2 == 0 && begun == c.kills {
				c.freed[addr] = c.given
			}
		}
	}
	c.mu.Unlock()
	c.count("DELs")
	if err := p.netns.Close(); err != nil {
		c.t.Error(err)
	}
	// Children of this process share its files between fork and exec, and the agent may work in the namespace for an
	// ADD whose plugin was killed, so the namespace may be busy for a moment.
	err = testenv.Poll(context.Background(), 10*time.Second, func(context.Context) error {
		err := unix.Unmount(p.netns.Path(), 0)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			err = errors.Join(err, testenv.ErrHopeless)
		}
		return err
	})
	if err = errors.Join(err, os.Remove(p.netns.Path())); err != nil {
		c.t.Errorf("remove the namespace of %s: %v", p.rt.ContainerID, err)
	}
}

// wantNothingLeft waits until no trace of any pod is left: the next agent removes pods that were deleted while no agent
// ran.
func (c *churn) wantNothingLeft() {
	c.t.Helper()
	err := testenv.Poll(c.t.Context(), 30*time.Second, func(context.Context) error {
		if left := c.left(); len(left) > 0 {
			return fmt.Errorf("left over: %v", left)
		}
		return nil
	})
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(c.dir, "agent.log"))
		c.t.Fatalf("%v\nthe agents' log ends:\n%s", err, log[max(0, len(log)-4000):])
	}
}

// left lists the traces of all pods: ports and their records, links, namespaces, files, flows.
func (c *churn) left() map[string][]string {
	left := map[string][]string{}
	note := func(what string, names ...string) {
		if len(names) > 0 {
			left[what] = names
		}
	}
	atts, bad, err := c.db.Attachments(c.ctx)
	if err != nil {
		note("OVSDB", err.Error())
	}
	for _, a := range atts {
		left["ports"] = append(left["ports"], a.HostIfName)
	}
	for _, b := range bad {
		left["ports"] = append(left["ports"], b.Name)
	}
	note("links", c.links()...)
	for _, dir := range []string{"/run/netns", filepath.Join(c.dir, "s", "attachments"),
		filepath.Join(c.dir, "s", "deleted")} {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			note(dir, err.Error())
		}
		for _, f := range files {
			left[dir] = append(left[dir], f.Name())
		}
	}
	dump, err := c.ovs.Run(c.ctx, "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", model.BridgeName)
	if err != nil {
		note("switch", err.Error())
	}
	for line := range strings.Lines(dump) {
		e, err := openflow.Parse(line)
		if err == nil && flows.Ours(e.Cookie) && flows.KindOf(e.Cookie) == model.KindPod {
			left["flows"] = append(left["flows"], e.Flow.String())
		}
	}
	return maps.Clone(left)
}
