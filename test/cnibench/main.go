// Command cnibench times CNI ADD and DEL through Weft against the reference plugins bridge and host-local: both through
// libcni, in one run, in turns, on the same kind of fresh network namespace. It prints the medians, their ratio, and
// where the time of Weft's goes.
//
// It runs in network and mount namespaces of its own and leaves nothing behind; it needs root and openvswitch-switch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

func main() {
	rounds := flag.Int("n", 100, "number of ADDs and DELs of each")
	datapath := flag.String("datapath", "netdev", "netdev or system")
	pods := flag.Int("pods", 20, "pods that are attached to each network all the time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *rounds, *pods, *datapath)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cnibench:", err)
		os.Exit(1)
	}
}

// isolate gives the program namespaces of its own, and a private directory for the pods'.
func isolate() error {
	if err := testenv.Isolate(); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll("/run/netns", 0o755), unix.Mount("cnibench", "/run/netns", "tmpfs", 0,
		"")); err != nil {
		return fmt.Errorf("mount a directory for network namespaces: %w", err)
	}
	return nil
}

func run(ctx context.Context, rounds, pods int, datapath string) (err error) {
	if err := isolate(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wb")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin := filepath.Join(dir, "bin")
	if err := build(ctx, bin); err != nil {
		return err
	}
	n, err := startNode(ctx, dir, datapath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()

	cni := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), nil)
	weft := &contender{name: "weft", cni: cni, phases: n.phases}
	weft.list, err = libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion": "1.0.0", "name": "weft", "plugins": [{"type": "weft-cni", "socket": %q}]}`, n.socket))
	if err != nil {
		return err
	}
	bridge := &contender{name: "bridge+host-local", cni: cni}
	bridge.list, err = libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "bridge", "bridge": "cbr0", "isGateway": true, "mtu": 1400,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, filepath.Join(dir, "ipam")))
	if err != nil {
		return err
	}
	both := []*contender{weft, bridge}
	for _, c := range both {
		for i := range pods {
			p, err := c.add(ctx, fmt.Sprintf("standing%d", i))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.end()) }() //nolint:gocritic // they stand until the measurement ends
		}
		c.reset()
	}
	for i := range rounds {
		for _, c := range both {
			p, err := c.add(ctx, fmt.Sprintf("round%d", i))
			if err != nil {
				return err
			}
			if err := errors.Join(c.del(ctx, p), p.end()); err != nil {
				return err
			}
		}
		// The other one goes first next time.
		slices.Reverse(both)
	}
	report(weft, bridge, rounds, pods, datapath)
	return nil
}

func build(ctx context.Context, bin string) error {
	dir, err := testenv.Repository()
	if err != nil {
		return err
	}
	for _, b := range []struct {
		dir, what string
	}{
		{dir, "./cmd/weft-cni"},
		{filepath.Join(dir, "test/cnibench/plugins"), "tool"},
	} {
		// The same way for both: static and stripped, as an image has them.
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", b.what)
		cmd.Dir, cmd.Env = b.dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cmd, err, out)
		}
	}
	return nil
}

// contender is one way of connecting a pod.
type contender struct {
	name     string
	cni      *libcni.CNIConfig
	list     *libcni.NetworkConfigList
	adds     []time.Duration
	dels     []time.Duration
	phases   *phases
	attached int
}

func (c *contender) reset() {
	c.adds, c.dels = nil, nil
	if c.phases != nil {
		c.phases.reset()
	}
}

type pod struct {
	rt  *libcni.RuntimeConf
	end func() error
}

func (c *contender) add(ctx context.Context, name string) (*pod, error) {
	netns, err := testutils.NewNS()
	if err != nil {
		return nil, err
	}
	c.attached++
	p := &pod{
		rt: &libcni.RuntimeConf{
			ContainerID: fmt.Sprintf("%s-%d", name, c.attached), NetNS: netns.Path(), IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}},
		},
		end: func() error { return errors.Join(netns.Close(), testutils.UnmountNS(netns)) },
	}
	start := time.Now()
	if _, err := c.cni.AddNetworkList(ctx, c.list, p.rt); err != nil {
		return nil, errors.Join(fmt.Errorf("ADD through %s: %w", c.name, err), p.end())
	}
	c.adds = append(c.adds, time.Since(start))
	return p, nil
}

func (c *contender) del(ctx context.Context, p *pod) error {
	start := time.Now()
	if err := c.cni.DelNetworkList(ctx, c.list, p.rt); err != nil {
		return fmt.Errorf("DEL through %s: %w", c.name, err)
	}
	c.dels = append(c.dels, time.Since(start))
	return nil
}
