package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/bench/result"
)

// attachment measures CNI ADD and DEL through Weft and through the reference plugins bridge and host-local: both
// through libcni, on the same kind of fresh network namespace. It works in the program's own namespaces.
type attachment struct {
	node       *node
	contenders []*contender
	count      int // ADDs and DELs of one measurement
	close      func() error
}

// contender is one way of connecting a pod.
type contender struct {
	name string
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList

	mu       sync.Mutex
	attached int // gives each container an ID of its own
}

func newContenders() []*contender { return []*contender{{name: result.Weft}, {name: result.Bridge}} }

// attached is a pod that stands.
type attached struct {
	rt  *libcni.RuntimeConf
	end func() error
}

// startAttachment starts a node with Open vSwitch and the parts of the agent that CNI needs, and attaches the pods that
// stand all the time.
func (o options) startAttachment(ctx context.Context) (_ *attachment, err error) {
	var undo []func() error
	a := &attachment{contenders: newContenders(), count: o.Attachments, close: func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("prepare CNI: %w", err), a.close())
		}
	}()
	// A directory for the pods' namespaces that other programs of the machine do not see.
	if err := errors.Join(os.MkdirAll("/run/netns", 0o755), unix.Mount("bench", "/run/netns", "tmpfs", 0,
		"")); err != nil {
		return nil, fmt.Errorf("mount a directory for network namespaces: %w", err)
	}
	undo = append(undo, func() error { return unix.Unmount("/run/netns", unix.MNT_DETACH) })
	dir, err := os.MkdirTemp("", "wb") // short: it holds sockets
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	if a.node, err = startNode(ctx, dir, o.Datapath); err != nil {
		return nil, err
	}
	undo = append(undo, a.node.stop)
	cni := libcni.NewCNIConfigWithCacheDir([]string{o.programs}, filepath.Join(dir, "cache"), nil)
	confs := map[string]string{
		result.Weft: fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "weft", "plugins": [{"type": "weft-cni", "socket": %q}]}`,
			a.node.socket),
		result.Bridge: fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "bridge",
			"bridge": "cbr0", "isGateway": true, "mtu": %d, "ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, podMTU, filepath.Join(dir, "ipam")),
	}
	for _, made := range a.contenders {
		made.cni = cni
		if made.list, err = libcni.NetworkConfFromBytes([]byte(confs[made.name])); err != nil {
			return nil, err
		}
		for range o.Standing {
			p, err := made.prepare("standing")
			if err != nil {
				return nil, err
			}
			undo = append(undo, p.end)
			if _, err := made.add(ctx, p); err != nil {
				return nil, err
			}
		}
	}
	a.node.phases.reset()
	return a, nil
}

// cases are ADD and DEL one at a time and 16 at once.
func (a *attachment) cases() []benchCase {
	single, many := benchCase{name: "attach/single"}, benchCase{name: fmt.Sprintf("attach/%d-at-once", atOnce)}
	for _, c := range a.contenders {
		single.entries = append(single.entries, entry{c.name, func(ctx context.Context, _ int) (values, error) {
			return a.measure(ctx, c, 1)
		}})
		many.entries = append(many.entries, entry{c.name, func(ctx context.Context, _ int) (values, error) {
			return a.measure(ctx, c, atOnce)
		}})
	}
	return []benchCase{single, many}
}

// measure attaches and detaches pods, as many at once as atOnce.
func (a *attachment) measure(ctx context.Context, c *contender, atOnce int) (values, error) {
	var adds, dels []float64
	for len(adds) < a.count {
		pods := make([]*attached, atOnce)
		for i := range pods {
			var err error
			if pods[i], err = c.prepare("round"); err != nil {
				return nil, err
			}
		}
		added, err := together(pods, func(p *attached) (time.Duration, error) { return c.add(ctx, p) })
		// A failed ADD is deleted, too, as a runtime does.
		deleted, undo := together(pods, func(p *attached) (time.Duration, error) { return c.del(ctx, p) })
		adds, dels, err = append(adds, added...), append(dels, deleted...), errors.Join(err, undo)
		for _, p := range pods {
			err = errors.Join(err, p.end())
		}
		if err != nil {
			return nil, err
		}
	}
	return values{"add-p50": result.Quantile(adds, 0.5), "add-p99": result.Quantile(adds, 0.99),
		"del-p50": result.Quantile(dels, 0.5), "del-p99": result.Quantile(dels, 0.99)}, nil
}

// together does something with all pods at once, and returns how long each took, in milliseconds.
func together(pods []*attached, do func(*attached) (time.Duration, error)) ([]float64, error) {
	var all sync.WaitGroup
	took, errs := make([]float64, len(pods)), make([]error, len(pods))
	for i, p := range pods {
		all.Go(func() {
			d, err := do(p)
			took[i], errs[i] = float64(d.Microseconds())/1e3, err
		})
	}
	all.Wait()
	return took, errors.Join(errs...)
}

// prepare makes the namespace of a pod.
func (c *contender) prepare(name string) (*attached, error) {
	netns, err := testutils.NewNS()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached++
	id := fmt.Sprintf("%s-%d", name, c.attached)
	return &attached{
		rt: &libcni.RuntimeConf{
			ContainerID: id, NetNS: netns.Path(), IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}},
		},
		end: func() error { return errors.Join(netns.Close(), testutils.UnmountNS(netns)) },
	}, nil
}

func (c *contender) add(ctx context.Context, p *attached) (time.Duration, error) {
	start := time.Now()
	if _, err := c.cni.AddNetworkList(ctx, c.list, p.rt); err != nil {
		return 0, fmt.Errorf("ADD through %s: %w", c.name, err)
	}
	return time.Since(start), nil
}

func (c *contender) del(ctx context.Context, p *attached) (time.Duration, error) {
	start := time.Now()
	if err := c.cni.DelNetworkList(ctx, c.list, p.rt); err != nil {
		return 0, fmt.Errorf("DEL through %s: %w", c.name, err)
	}
	return time.Since(start), nil
}
