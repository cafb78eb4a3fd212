package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// maxBody bounds what a client may send.
const maxBody = 1 << 20

// Handler serves the API.
func (s *Store) Handler() http.Handler {
	mux := http.NewServeMux()
	for name, r := range resources {
		collection := func(w http.ResponseWriter, req *http.Request) { s.serveCollection(w, req, name, r) }
		object := func(w http.ResponseWriter, req *http.Request) { s.serveObject(w, req, name) }
		mux.HandleFunc("GET "+r.prefix()+"/"+name, collection)
		if r.namespaced {
			mux.HandleFunc("GET "+r.prefix()+"/namespaces/{namespace}/"+name, collection)
			mux.HandleFunc("GET "+r.prefix()+"/namespaces/{namespace}/"+name+"/{name}", object)
		} else {
			mux.HandleFunc("GET "+r.prefix()+"/"+name+"/{name}", object)
		}
	}
	serveDiscovery(mux)
	mux.HandleFunc("PATCH /api/v1/nodes/{name}/status", s.patchNodeStatus)
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/events", s.createEvent)
	mux.HandleFunc("PATCH /api/v1/namespaces/{namespace}/events/{name}", s.patchEvent)
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		fail(w, apierrors.NewGenericServerResponse(http.StatusNotFound, req.Method, schema.GroupResource{}, req.URL.Path,
			"the lab's API server does not serve this", 0, true))
	})
	return mux
}

// selection is which objects of a collection are asked for.
type selection struct {
	namespace string
	fields    fields.Selector
	labels    labels.Selector
}

func parseSelection(req *http.Request) (selection, error) {
	q := req.URL.Query()
	f, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		return selection{}, err
	}
	for _, r := range f.Requirements() {
		if r.Field != "spec.nodeName" && r.Field != "metadata.name" && r.Field != "metadata.namespace" {
			return selection{}, fmt.Errorf("field %q cannot be selected by", r.Field)
		}
	}
	l, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		return selection{}, err
	}
	return selection{namespace: req.PathValue("namespace"), fields: f, labels: l}, nil
}

func (s selection) has(o Object) bool {
	if s.namespace != "" && o.GetNamespace() != s.namespace || !s.labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if pod, ok := o.(*corev1.Pod); ok {
		set["spec.nodeName"] = pod.Spec.NodeName
	}
	return s.fields.Matches(set)
}

func (s *Store) serveCollection(w http.ResponseWriter, req *http.Request, resource string, r resourceInfo) {
	selected, err := parseSelection(req)
	if err != nil {
		fail(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	if watching, err := strconv.ParseBool(req.URL.Query().Get("watch")); err == nil && watching {
		s.serveWatch(w, req, resource, r, selected)
		return
	}
	objects, version := s.List(resource)
	if asked, err := strconv.ParseUint(req.URL.Query().Get("resourceVersion"), 10, 64); err == nil && asked > version {
		fail(w, tooLarge(asked, version))
		return
	}
	items := []Object{}
	for _, o := range objects {
		if selected.has(o) {
			items = append(items, o)
		}
	}
	answer(w, http.StatusOK, map[string]any{
		"apiVersion": r.group.String(), "kind": r.kind + "List",
		"metadata": metav1.ListMeta{ResourceVersion: strconv.FormatUint(version, 10)},
		"items":    items,
	})
}

// tooLarge says that the state which a list has to have reached is still to come.
func tooLarge(asked, version uint64) *apierrors.StatusError {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, version), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge,
		Message: "Too large resource version"}}
	return err
}

func (s *Store) serveObject(w http.ResponseWriter, req *http.Request, resource string) {
	name := types.NamespacedName{Namespace: req.PathValue("namespace"), Name: req.PathValue("name")}
	o, ok := s.Get(resource, name)
	if !ok {
		fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name.Name))
		return
	}
	answer(w, http.StatusOK, o)
}

// patchNodeStatus takes in what an agent says about its node.
func (s *Store) patchNodeStatus(w http.ResponseWriter, req *http.Request) {
	patch, err := body(req)
	if err != nil {
		fail(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	if kind := req.Header.Get("Content-Type"); kind != string(types.StrategicMergePatchType) {
		fail(w, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch",
			schema.GroupResource{Resource: Nodes}, req.PathValue("name"), kind, 0, true))
		return
	}
	name := types.NamespacedName{Name: req.PathValue("name")}
	o, ok, err := s.Update(Nodes, name, func(o Object) (Object, error) {
		before, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		after, err := strategicpatch.StrategicMergePatch(before, patch, &corev1.Node{})
		if err != nil {
			return nil, err
		}
		var next corev1.Node
		return &next, json.Unmarshal(after, &next)
	})
	switch {
	case err != nil:
		fail(w, apierrors.NewBadRequest(err.Error()))
	case !ok:
		fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: Nodes}, name.Name))
	default:
		answer(w, http.StatusOK, o)
	}
}

func (s *Store) createEvent(w http.ResponseWriter, req *http.Request) {
	s.takeEvent(w, req, &corev1.Event{}, http.StatusCreated)
}

// patchEvent takes in the count of an event that came before.
func (s *Store) patchEvent(w http.ResponseWriter, req *http.Request) {
	for _, e := range s.Events() {
		if e.Namespace == req.PathValue("namespace") && e.Name == req.PathValue("name") {
			s.takeEvent(w, req, e.DeepCopy(), http.StatusOK)
			return
		}
	}
	fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, req.PathValue("name")))
}

// takeEvent reads an event, or what of it is new, over what is known of it.
func (s *Store) takeEvent(w http.ResponseWriter, req *http.Request, e *corev1.Event, status int) {
	b, err := body(req)
	if err == nil {
		err = json.Unmarshal(b, e)
	}
	if err != nil {
		fail(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	e.Namespace = req.PathValue("namespace")
	s.addEvent(e)
	answer(w, status, e)
}

func body(req *http.Request) ([]byte, error) {
	return io.ReadAll(io.LimitReader(req.Body, maxBody))
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone; there is no other reader
}

func fail(w http.ResponseWriter, err *apierrors.StatusError) {
	status := err.Status()
	status.APIVersion, status.Kind = "v1", "Status"
	answer(w, int(status.Code), status)
}
