package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/manifest"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	// attachAtOnce bounds the CNI requests under way; a kubelet, too, starts pods in parallel.
	attachAtOnce = 8
	podInterface = "eth0"
	attempts     = 3
	// grace is how long a pod that goes serves on while the agents learn of it; in a cluster it is half a minute.
	grace = 500 * time.Millisecond
)

// pod is a pod that stands. Its fields are not changed once it is in Lab.pods, except under the lock.
type pod struct {
	key    string
	object *corev1.Pod
	node   *node
	ns     podns.Namespace
	// responder answers on every port but those that this kernel has no protocol for.
	responder *podns.Responder
	missing   []podns.Port
	ips       []netip.Addr
	mac       model.MAC // of a pod with a network of its own
	// leaving is when the pod began to go.
	leaving *metav1.Time
}

// onHost is set on pods in their node's network.
func (p *pod) onHost() bool { return p.object.Spec.HostNetwork }

func keyOf(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// containerID is CNI's name of the pod's sandbox.
func (p *pod) containerID() string { return "lab-" + string(p.object.UID) }

// apply makes the pods and the API's objects what the manifests say. What did not change is not touched.
func (l *Lab) apply(ctx context.Context, set manifest.Set) error {
	want := map[string]*corev1.Pod{}
	for _, object := range set.Pods {
		want[keyOf(object)] = object
	}
	// Another pod of the same name can only come when the old one has gone.
	if err := l.removePods(func(p *pod) bool {
		next, ok := want[p.key]
		return ok && (next.Spec.NodeName != p.node.name || next.Spec.HostNetwork != p.onHost())
	}); err != nil {
		return err
	}
	var added []*pod
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if p := l.pods[key]; p != nil {
			if err := l.updatePod(p, want[key]); err != nil {
				return err
			}
			continue
		}
		object := want[key].DeepCopy()
		object.UID = uuid.NewUUID()
		added = append(added, &pod{key: key, object: object, node: l.nodeNamed(object.Spec.NodeName)})
	}
	l.mu.Lock()
	l.set = set
	l.mu.Unlock()
	// As in a cluster, the agents learn of a pod before the runtime asks for its network.
	if err := l.applyObjects(added); err != nil {
		return err
	}
	err := l.addPods(ctx, added)
	if err := errors.Join(err, l.applyObjects(nil), l.routeOutside(ctx)); err != nil {
		return err
	}
	return l.retire(ctx, func(p *pod) bool { return want[p.key] == nil })
}

// retire takes pods away as a cluster does: they terminate while others have taken over, and are in the API until their
// network is gone.
func (l *Lab) retire(ctx context.Context, gone func(*pod) bool) error {
	if !slices.ContainsFunc(l.sortedPods(), gone) {
		return nil
	}
	l.leave(gone)
	if err := l.applyObjects(nil); err != nil {
		return err
	}
	select {
	case <-time.After(grace):
	case <-ctx.Done():
		return ctx.Err()
	}
	return errors.Join(l.removePods(gone), l.applyObjects(nil))
}

// leave marks pods that are to go. Until they have, the API calls them terminating, and they serve on.
func (l *Lab) leave(gone func(*pod) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := metav1.Now()
	for _, p := range l.pods {
		if gone(p) && p.leaving == nil {
			p.leaving = &now
		}
	}
}

// removePods takes pods away.
func (l *Lab) removePods(gone func(*pod) bool) error {
	var group errgroup.Group
	group.SetLimit(attachAtOnce)
	for _, p := range l.pods {
		if !gone(p) {
			continue
		}
		l.mu.Lock()
		delete(l.pods, p.key)
		l.mu.Unlock()
		group.Go(func() error {
			p.responder.Close()
			if p.onHost() {
				return p.ns.Close()
			}
			return errors.Join(p.call("DEL"), p.ns.Close())
		})
	}
	return group.Wait()
}

// updatePod takes over what a pod that stands can change: its labels and its ports.
func (l *Lab) updatePod(p *pod, object *corev1.Pod) error {
	next := object.DeepCopy()
	next.UID = p.object.UID
	missing, err := p.responder.Listen(portsOf(next))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p.object, p.missing, p.leaving = next, missing, nil
	return nil
}

func (l *Lab) addPods(ctx context.Context, added []*pod) error {
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(attachAtOnce)
	for _, p := range added {
		group.Go(func() error {
			if err := p.start(); err != nil {
				return err
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.pods[p.key] = p
			return nil
		})
	}
	return group.Wait()
}

// start makes the pod's namespace, has it connected, and answers on its ports.
func (p *pod) start() (err error) {
	if p.onHost() {
		p.ips = addrsOf(p.node.underlay)
		p.ns, err = podns.Open(p.node.netNS())
	} else {
		p.ns, err = podns.New()
	}
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.key, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start pod %s: %w", p.key, err), p.ns.Close())
		}
	}()
	if !p.onHost() {
		if err := p.attach(); err != nil {
			return err
		}
	}
	p.responder = podns.NewResponder(p.ns, p.key)
	if p.missing, err = p.responder.Listen(portsOf(p.object)); err != nil {
		p.responder.Close()
		if p.onHost() {
			return err
		}
		return errors.Join(err, p.call("DEL"))
	}
	return nil
}

// attach has the pod connected. It tries again, as a kubelet does, only when the agent says that it may (CNI, Error
// Codes: 11): on a busy machine it may not keep the runtime's time. Any other error is one.
func (p *pod) attach() error {
	var err error
	for range attempts {
		var later *types.Error
		if err = p.call("ADD"); !errors.As(err, &later) || later.Code != types.ErrTryAgainLater {
			return err
		}
		if undo := p.call("DEL"); undo != nil {
			return errors.Join(err, undo)
		}
	}
	return err
}

// call does what weft-cni does when the runtime runs it, with the configuration that the agent wrote for it.
func (p *pod) call(command string) error {
	conf, err := pluginConf()
	if err != nil {
		return err
	}
	request := wire.Request{
		Command: command, ContainerID: p.containerID(), IfName: podInterface, Netns: p.ns.Path(), Config: conf,
		Args: fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s",
			p.object.Namespace, p.object.Name, p.object.UID, p.containerID()),
	}
	netns := p.ns.File()
	if command == "DEL" {
		netns = nil
	}
	response, err := wire.Call(p.node.path(cniSocket), request, netns)
	if err == nil && response.Error != nil {
		err = response.Error
	}
	if err == nil && command == "ADD" {
		err = p.take(response.Result)
	}
	if err != nil {
		return fmt.Errorf("CNI %s on node %s: %w", command, p.node.name, err)
	}
	return nil
}

// take reads the pod's addresses from the result of its ADD.
func (p *pod) take(raw []byte) error {
	var r current.Result
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the result: %w", err)
	}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("read the result: address %v", ip.Address)
		}
		p.ips = append(p.ips, addr.Unmap())
	}
	for _, link := range r.Interfaces {
		if link.Sandbox != "" {
			mac, err := model.ParseMAC(link.Mac)
			if err != nil {
				return fmt.Errorf("read the result: %w", err)
			}
			p.mac = mac
		}
	}
	if len(p.ips) == 0 {
		return errors.New("read the result: it has no address")
	}
	return nil
}

// pluginConf is what libcni gives weft-cni on its standard input: the plugin's part of the list, with the list's name
// and version.
func pluginConf() ([]byte, error) {
	b, err := cni.ConfList("")
	if err != nil {
		return nil, err
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read the CNI configuration: %w", err)
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("read the CNI configuration: it has no plugin")
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	return json.Marshal(conf)
}

// portsOf lists a pod's container ports, each once.
func portsOf(object *corev1.Pod) []podns.Port {
	var ports []podns.Port
	for _, c := range object.Spec.Containers {
		for _, p := range c.Ports {
			port := podns.Port{Proto: protocolOf(p.Protocol), Number: uint16(p.ContainerPort)}
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports
}

func protocolOf(p corev1.Protocol) podns.Proto {
	if p == "" {
		return podns.TCP
	}
	return podns.Proto(p)
}
