package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/test/lab/podns"
)

// pod is a pod of this node, with a namespace that the agent's CNI code connected.
type pod struct {
	object    *corev1.Pod
	ns        podns.Namespace
	ip        netip.Addr
	responder *podns.Responder
}

func (n *node) cniSocket() string { return filepath.Join(n.dir, "cni.sock") }

// attach makes the API's objects pods of this node. The agent runs.
func (n *node) attach(objects []*corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(4)
	pods := make([]*pod, len(objects))
	for i, object := range objects {
		if err := n.api.Put(apiserver.Pods, object); err != nil {
			return err
		}
		// With the UID that the API gave it.
		stored, _ := n.api.Get(apiserver.Pods, types.NamespacedName{Namespace: object.Namespace, Name: object.Name})
		object = object.DeepCopy()
		object.UID = stored.GetUID()
		group.Go(func() (err error) {
			p := &pod{object: object}
			pods[i] = p
			if p.ns, err = podns.New(); err != nil {
				return err
			}
			return p.add(n.cniSocket())
		})
	}
	err := group.Wait()
	for _, p := range pods {
		if p != nil {
			n.pods = append(n.pods, p)
		}
	}
	if err != nil {
		return err
	}
	for _, p := range pods {
		p.object.Status.Phase = corev1.PodRunning
		p.object.Status.PodIP, p.object.Status.PodIPs = p.ip.String(), []corev1.PodIP{{IP: p.ip.String()}}
		if err := n.api.Put(apiserver.Pods, p.object); err != nil {
			return err
		}
	}
	return nil
}

// add does what weft-cni does when the runtime runs it.
func (p *pod) add(socket string) error {
	o := p.object
	id := string(o.UID)
	response, err := wire.Call(socket, wire.Request{
		Command: "ADD", ContainerID: id, IfName: "eth0", Netns: p.ns.Path(), Config: []byte(
			`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni"}`),
		Args: fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s",
			o.Namespace, o.Name, o.UID, id),
	}, p.ns.File())
	if err == nil && response.Error != nil {
		err = response.Error
	}
	var result current.Result
	if err == nil {
		err = json.Unmarshal(response.Result, &result)
	}
	if err == nil && len(result.IPs) == 0 {
		err = errors.New("it got no address")
	}
	if err != nil {
		return fmt.Errorf("attach pod %s/%s: %w", o.Namespace, o.Name, err)
	}
	ip, _ := netip.AddrFromSlice(result.IPs[0].Address.IP)
	p.ip = ip.Unmap()
	return nil
}

// serve answers on a port of the pod.
func (p *pod) serve(port uint16) error {
	p.responder = podns.NewResponder(p.ns, p.object.Name)
	_, err := p.responder.Listen([]podns.Port{{Proto: podns.TCP, Number: port}})
	return err
}

// close lets go of the namespace, and with it of the pod's links.
func (p *pod) close() error {
	if p.responder != nil {
		p.responder.Close()
	}
	if p.ns.File() == nil {
		return nil
	}
	return p.ns.Close()
}
