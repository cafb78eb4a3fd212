package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// upOptions are what `up` was asked for.
type upOptions struct {
	plan     state.Plan
	nodes    int
	tunnel   string
	settings map[string]string // others of Weft, by key
	datapath datapath.Datapath
	dir      string // absolute
	install  string // manifest of Weft; empty: a cluster without network
	switches openVSwitch
	image    string // tar with Weft's image; empty: none
	agnhost  bool   // put Kubernetes' image for tests on every node
	dns      bool   // run CoreDNS
}

// up starts a cluster. When it fails, what has been started stays for inspection; `down` or the next `up` removes it.
func up(ctx context.Context, p *progress, o upOptions) error {
	if err := checkMachine(o.datapath); err != nil {
		return err
	}
	if err := o.switches.check(o); err != nil {
		return err
	}
	for _, path := range []string{o.install, o.image} {
		if _, err := os.Stat(path); path != "" && err != nil {
			return fmt.Errorf("cannot deploy Weft (build it with `make image`, or use --no-weft): %w", err)
		}
	}
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	components, err := kubernetes.ensure(ctx, p, repo)
	if err != nil {
		return err
	}
	var dns string
	if o.dns {
		if dns, err = coreDNS.ensure(ctx, p, repo); err != nil {
			return err
		}
	}
	unlock, err := lockOf(o.dir).Lock()
	if err != nil {
		return fmt.Errorf("start cluster %q: %w", o.plan.Name, err)
	}
	defer unlock()
	group := sandbox.Group(o.plan.Name)
	if left, err := group.Leftovers(); err != nil {
		return err
	} else if len(left) > 0 || stateExists(o.dir) {
		if err := p.step("Remove the previous cluster", func(func(string)) error { return remove(ctx, group, o.dir) }); err != nil {
			return err
		}
	}
	c := state.Cluster{Plan: o.plan, Dir: o.dir, Created: time.Now(), Tunnel: o.tunnel, Datapath: o.datapath,
		APIServer: o.plan.APIServer(), Components: components}
	if err := start(ctx, p, repo, &c, o, dns); err != nil {
		p.print("What has been started stays for inspection, with its logs in " + paths(o.dir).join("logs") +
			"; `make cluster-down` removes it.")
		return err
	}
	p.print(fmt.Sprintf("Cluster %q is up after %s: export KUBECONFIG=%s", o.plan.Name, seconds(time.Since(p.begun)),
		c.Kubeconfig()))
	return nil
}

func start(ctx context.Context, p *progress, repo string, c *state.Cluster, o upOptions, dns string) error {
	if err := p.step("Underlay, hosts beside the nodes and certificates", func(func(string)) error {
		return prepare(ctx, c,
			o.nodes)
	}); err != nil {
		return err
	}
	err := p.step("Control plane", func(detail func(string)) (err error) {
		c.Processes, err = startControlPlane(ctx, repo, *c, detail)
		return err
	})
	if err := errors.Join(err, c.Save()); err != nil {
		return err
	}
	var images []string
	err = p.step("Images", func(func(string)) (err error) {
		images, err = writeImages(ctx, repo, *c, o.agnhost, dns)
		return err
	})
	if err != nil {
		return err
	}
	if o.image != "" {
		images = append(images, o.image)
	}
	err = p.step(fmt.Sprintf("%s (%s): containerd, images, kubelet", terminal.Count(o.nodes, "node"), o.switches),
		func(detail func(string)) error {
			return startNodes(ctx, c, o, images, detail)
		})
	if err := errors.Join(err, c.Save()); err != nil {
		return err
	}
	if o.install == "" {
		if o.dns {
			return applyDNS(ctx, p, *c)
		}
		return nil
	}
	if err := o.switches.deploy(ctx, p, *c, o.install); err != nil {
		return err
	}
	if err := deployWeft(ctx, p, *c, o); err != nil || !o.dns {
		return err
	}
	if err := applyDNS(ctx, p, *c); err != nil {
		return err
	}
	return awaitDNS(ctx, p, *c)
}

// prepare makes the state directory, the hosts beside the nodes with the network between them, and all credentials.
func prepare(ctx context.Context, c *state.Cluster, nodes int) error {
	dir := paths(c.Dir)
	for _, sub := range []string{"bin", "images", "logs", "nodes", "pki"} {
		if err := os.MkdirAll(dir.join(sub), 0o755); err != nil {
			return fmt.Errorf("prepare state directory: %w", err)
		}
	}
	if err := c.Save(); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(c.Components, "kubectl"), c.Kubectl()); err != nil {
		return fmt.Errorf("prepare state directory: %w", err)
	}
	var named []state.Node
	for i := range nodes {
		named = append(named, state.Node{Name: state.NodeName(i), Addrs: state.Addrs(c.Plan.Node(i))})
	}
	if err := writeCredentials(dir, c.Plan, named); err != nil {
		return err
	}
	if err := checkUnderlayFree(c.Plan); err != nil {
		return err
	}
	var err error
	if c.Underlay, err = sandbox.Group(c.Plan.Name).StartUnderlay(ctx, state.UnderlayMTU, c.Plan.Host()); err != nil {
		return err
	}
	if c.Outside, err = startOutside(ctx, *c); err != nil {
		return err
	}
	if c.ControlPlane, err = startMember(ctx, *c, state.ControlPlaneName, c.Plan.ControlPlane()); err != nil {
		return err
	}
	return c.Save()
}

// checkUnderlayFree refuses a plan whose underlay the machine already uses for something else.
func checkUnderlayFree(plan state.Plan) error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the machine's addresses: %w", err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		for _, underlay := range plan.Underlay() {
			if ok && underlay.Contains(addr.Unmap()) {
				return fmt.Errorf("the machine has the address %s on link %q, inside the underlay %s of cluster %q: choose "+
					"another --name, which gets another underlay",
					a.IPNet, a.Label, underlay, plan.Name)
			}
		}
	}
	return nil
}

// writeImages makes the images that every node has from the start, and returns their tars. dns is CoreDNS's directory,
// if it is to run.
func writeImages(ctx context.Context, repo string, c state.Cluster, withAgnhost bool, dns string) (tars []string,
	err error) {
	dir := paths(c.Dir)
	pause, err := testenv.Program(ctx, repo, "./test/cluster/pause", dir.join("bin"))
	if err != nil {
		return nil, err
	}
	images := map[string]image.Image{"pause": image.Pause(pause)}
	var coreDNS string
	if dns != "" {
		coreDNS = filepath.Join(dns, "coredns")
		images["coredns"] = image.CoreDNS(coreDNS)
	}
	if withAgnhost {
		var sctp string
		if !kernelHasSCTP() {
			if sctp, err = testenv.Program(ctx, repo, "./test/cluster/agnhost", dir.join("bin")); err != nil {
				return nil, err
			}
		}
		if images["agnhost"], err = image.Agnhost(ctx, filepath.Join(c.Components, "agnhost"), sctp, coreDNS); err != nil {
			return nil, err
		}
	}
	for name, img := range images {
		if err := img.Write(dir.image(name)); err != nil {
			return nil, err
		}
		tars = append(tars, dir.image(name))
	}
	return tars, nil
}

// startNodes starts all nodes at once and returns when each is registered. What was started is in c, also after an
// error.
func startNodes(ctx context.Context, c *state.Cluster, o upOptions, images []string, detail func(string)) error {
	c.Nodes = make([]state.Node, o.nodes)
	var registered atomic.Int32
	return each(ctx, o.nodes, func(ctx context.Context, i int) (err error) {
		if c.Nodes[i], err = startNode(ctx, *c, i, o.switches); err != nil {
			return err
		}
		for _, tar := range images {
			if err := importImage(ctx, c.Nodes[i], tar); err != nil {
				return err
			}
		}
		if err := startKubelet(ctx, *c, c.Nodes[i], i); err != nil {
			return err
		}
		detail(fmt.Sprintf("%d registered", registered.Add(1)))
		return nil
	})
}

// importImage puts the images of a tar into a node's containerd, where kubelet finds them.
func importImage(ctx context.Context, n state.Node, tar string) error {
	_, err := n.Sandbox.Run(ctx, "ctr", "--namespace=k8s.io", "images", "import", tar)
	return err
}

// each runs f for the nodes 0 to count-1 at once.
func each(ctx context.Context, count int, f func(ctx context.Context, index int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range count {
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}
