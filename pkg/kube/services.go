package kube

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/service"
)

// Label selectors of the objects that node proxies follow. A Service that names a proxy of its own is not ours, and
// headless ones have nothing to serve; the labels of a Service are on its slices, too.
const (
	ServiceSelector = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
	// OtherProxySelector selects the Services of other proxies. They keep their ClusterIPs.
	OtherProxySelector = "service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
	SliceSelector      = ServiceSelector + "," + discoveryv1.LabelServiceName
)

// serviceObject is what an informer holds of a Service: on a large cluster the object itself would be several times as
// big. The store shares it.
type serviceObject struct {
	service.Service
	version string
}

// sliceObject is what an informer holds of an EndpointSlice. The store shares it.
type sliceObject struct {
	service.Slice
	version string
}

// GetObjectMeta gives client-go the name and version that it looks for in every object.
func (o *serviceObject) GetObjectMeta() metav1.Object { return objectMeta(o.Service.Name, o.version) }

// GetObjectMeta gives client-go the name and version that it looks for in every object.
func (o *sliceObject) GetObjectMeta() metav1.Object { return objectMeta(o.Slice.Name, o.version) }

func objectMeta(name, version string) metav1.Object {
	namespace, rest := service.SplitName(name)
	return &metav1.ObjectMeta{Namespace: namespace, Name: rest, ResourceVersion: version}
}

// sameAs tells an update that changes nothing for a node.
func (o *serviceObject) sameAs(old any) bool {
	before, ok := old.(*serviceObject)
	return ok && reflect.DeepEqual(before.Service, o.Service)
}

func (o *sliceObject) sameAs(old any) bool {
	before, ok := old.(*sliceObject)
	return ok && reflect.DeepEqual(before.Slice, o.Slice)
}

func trimService(obj any) (any, error) {
	o, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	s, err := Service(o)
	s.Problem = textOf(err)
	return &serviceObject{Service: s, version: o.ResourceVersion}, nil
}

func trimSlice(obj any) (any, error) {
	o, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	s, err := EndpointSlice(o)
	s.Problem = textOf(err)
	return &sliceObject{Slice: s, version: o.ResourceVersion}, nil
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// setOtherProxy tells of a Service that another proxy serves.
func (w *Watcher) setOtherProxy(obj any) {
	if o, ok := obj.(*serviceObject); ok {
		for _, c := range otherProxyEffect(o).Set {
			w.emit(c)
		}
	}
}
