package kube

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/state"
)

// Replay emits every object that the informers hold, as they have emitted it. Pods that wait for their policies are
// among them.
func (w *Watcher) Replay(emit func(state.Change)) {
	objects := w.cluster.objects()
	for _, informer := range w.informers {
		if informer != w.otherProxies {
			objects = append(objects, informer.GetStore().List()...)
		}
	}
	effects := make([]Effect, 0, len(objects))
	for _, obj := range objects {
		effects = append(effects, EffectOf(w.node, obj))
	}
	for _, obj := range w.otherProxies.GetStore().List() {
		if o, ok := obj.(*serviceObject); ok {
			effects = append(effects, otherProxyEffect(o))
		}
	}
	for _, e := range effects {
		for _, c := range e.Set {
			emit(c)
		}
	}
	emit(w.cidrs.all())
}

// Proposed are the changes that objects would make if they were applied or, with remove, deleted, and what the user
// should know of each that means less than its manifest says. Objects are JSON, as manifests have them: what the API
// server, a controller or the kubelet fills in is taken from the object of the same name, if there is one.
func (w *Watcher) Proposed(objects []json.RawMessage, remove bool) (
	changes []state.Change, warnings []string, err error,
) {
	for i, text := range objects {
		object, err := decode(text)
		if err != nil {
			return nil, nil, fmt.Errorf("object %d: %w", i+1, err)
		}
		if object.known == nil {
			warnings = append(warnings, object.name+" makes no flows by itself")
			continue
		}
		if !remove {
			warnings = append(warnings, w.complete(object)...)
		}
		e := EffectOf(w.node, object.known)
		if e.Problem != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %v", object.name, e.Problem))
		}
		switch {
		case len(e.Set) == 0:
			warnings = append(warnings, object.name+" is not served by nodes")
		case remove:
			changes = append(changes, e.Gone...)
		default:
			changes = append(changes, e.Set...)
		}
	}
	return changes, warnings, nil
}

// proposal is an object of a manifest.
type proposal struct {
	name  string         // kind and name, for messages
	known runtime.Object // nil for a kind that agents do not follow
}

// strict rejects fields that a kind does not have: the API server would ignore them.
var strict = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

func decode(text []byte) (proposal, error) {
	var head metav1.PartialObjectMetadata
	if err := json.Unmarshal(text, &head); err != nil {
		return proposal{}, err
	}
	if head.APIVersion == "" || head.Kind == "" || head.Name == "" {
		return proposal{}, errors.New("it needs apiVersion, kind and metadata.name")
	}
	p := proposal{name: head.Kind + " " + head.Name}
	var err error
	switch head.APIVersion + " " + head.Kind {
	case cnp.GroupVersion.String() + " " + cnp.Kind:
		object := &cnp.ClusterNetworkPolicy{}
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		p.known, err = object, decoder.Decode(object)
	case "v1 Node", "v1 Namespace":
		p.known, _, err = strict.Decode(text, nil, nil)
	case "v1 Pod", "v1 Service", "networking.k8s.io/v1 NetworkPolicy", "discovery.k8s.io/v1 EndpointSlice":
		p.known, _, err = strict.Decode(text, nil, nil)
		if object, ok := p.known.(metav1.Object); ok {
			object.SetNamespace(cmp.Or(object.GetNamespace(), metav1.NamespaceDefault))
			p.name = head.Kind + " " + object.GetNamespace() + "/" + head.Name
		}
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", p.name, err)
	}
	return p, nil
}

// complete fills in what a manifest leaves to the API server, to controllers and to the kubelet.
func (w *Watcher) complete(p proposal) (warnings []string) {
	missing := func(what string) { warnings = append(warnings, p.name+" "+what) }
	switch o := p.known.(type) {
	case *networkingv1.NetworkPolicy:
		if len(o.Spec.PolicyTypes) == 0 {
			o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(o.Spec.Egress) > 0 {
				o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
			}
		}
		if _, exists, _ := w.namespaces.GetStore().GetByKey(o.Namespace); !exists {
			missing("is of a namespace that does not exist")
		}
	case *corev1.Namespace:
		o.Labels = maps.Clone(o.Labels)
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	case *corev1.Node:
		was, found := held[*corev1.Node](w.nodes.GetStore(), o.Name)
		if !found {
			break
		}
		o.CreationTimestamp = was.CreationTimestamp
		if len(o.Status.Addresses) == 0 {
			o.Status.Addresses = was.Status.Addresses
		}
		if len(o.Spec.PodCIDRs) == 0 {
			o.Spec.PodCIDRs = was.Spec.PodCIDRs
		}
		annotations := map[string]string{}
		maps.Copy(annotations, was.Annotations) // the agents' own
		maps.Copy(annotations, o.Annotations)
		o.Annotations = annotations
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			if o.Ports[i].Name == nil {
				o.Ports[i].Name = new(string)
			}
		}
	case *corev1.Pod:
		w.completePod(o, missing)
	case *corev1.Service:
		w.completeService(o, missing)
	}
	return warnings
}

// held is the object of an informer with this key.
func held[T any](store interface {
	GetByKey(key string) (item any, exists bool, err error)
}, key string) (object T, found bool) {
	item, _, err := store.GetByKey(key)
	object, found = item.(T)
	return object, found && err == nil
}

func (w *Watcher) completePod(o *corev1.Pod, missing func(string)) {
	was, found := held[*pod](w.pods.GetStore(), o.Namespace+"/"+o.Name)
	if found {
		o.UID, o.Spec.NodeName = types.UID(was.pod.UID), cmp.Or(o.Spec.NodeName, was.pod.Node)
		o.Spec.HostNetwork = was.pod.HostNetwork
		if len(o.Status.PodIPs) == 0 {
			for _, addr := range was.pod.Addrs {
				o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: addr.String()})
			}
		}
	}
	if len(o.Status.PodIPs) == 0 && o.Status.PodIP == "" {
		missing("has no address yet: policies that name it get none")
	}
}

func (w *Watcher) completeService(o *corev1.Service, missing func(string)) {
	was, found := held[*serviceObject](w.services.GetStore(), o.Namespace+"/"+o.Name)
	if !found {
		was, found = held[*serviceObject](w.otherProxies.GetStore(), o.Namespace+"/"+o.Name)
	}
	if o.Spec.ClusterIP == "" && len(o.Spec.ClusterIPs) == 0 && found {
		for _, addr := range was.ClusterIPs {
			o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, addr.String())
		}
	}
	if found && o.Spec.Type != corev1.ServiceTypeClusterIP && o.Spec.Type != "" {
		completePorts(o, was)
	}
	if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP == "" && o.Spec.Type != corev1.ServiceTypeExternalName {
		missing("has no ClusterIP yet: it has no flows before")
	}
}

// completePorts keeps the ports at nodes, the health check's, and the addresses that a load balancer has given.
func completePorts(o *corev1.Service, was *serviceObject) {
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		for _, old := range was.Ports {
			protocol := cmp.Or(string(p.Protocol), string(corev1.ProtocolTCP))
			if p.NodePort == 0 && old.Port == uint16(p.Port) && string(old.Protocol) == protocol {
				p.NodePort = int32(old.NodePort)
			}
		}
	}
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	if o.Spec.HealthCheckNodePort == 0 {
		o.Spec.HealthCheckNodePort = int32(was.HealthCheckNodePort)
	}
	if len(o.Status.LoadBalancer.Ingress) == 0 {
		for _, addr := range was.LoadBalancerIPs {
			o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress,
				corev1.LoadBalancerIngress{IP: addr.String()})
		}
	}
}
