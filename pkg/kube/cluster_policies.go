package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// kindPause is how often the API server is asked whether it has ClusterNetworkPolicies by now.
const kindPause = 10 * time.Second

// clusterPolicies follows ClusterNetworkPolicies, a kind that an API server has only while its CustomResourceDefinition
// is installed. While it is absent, the status says so; when the kind comes, the policies are followed, and when it
// goes, they are gone. A 404 alone does not say that it went (see absent).
type clusterPolicies struct {
	client clusterClient
	feed   *feed
	gate   *gate
	emit   func(state.Change)
	log    *slog.Logger
	pause  time.Duration // kindPause, but for tests

	mu    sync.Mutex
	asked bool        // the API server has answered whether it has the kind
	away  string      // why there are none; empty while the kind is followed
	store cache.Store // while the kind is followed
	// emitted says that what existed at the start was handed on.
	emitted cache.InformerSynced
}

// followClusterPolicies prepares for ClusterNetworkPolicies.
func (w *Watcher) followClusterPolicies() {
	f := &feed{resource: cnp.Resource, silence: silentAfter}
	w.feeds = append(w.feeds, f)
	w.cluster = &clusterPolicies{client: clusterClient{w.client}, feed: f, gate: w.gate, emit: w.emit,
		log: w.log, pause: kindPause}
	w.gate.cluster = w.cluster.versions
	w.emitted = append(w.emitted, w.cluster.synced)
}

// run follows the policies whenever the API server has the kind, until the context ends.
func (c *clusterPolicies) run(ctx context.Context) {
	for ctx.Err() == nil {
		_, err := c.client.list(ctx, metav1.ListOptions{Limit: 1})
		pause, away := c.pause, ""
		if apierrors.IsNotFound(err) {
			away, err = c.client.absent(ctx)
		}
		switch {
		case away != "":
			c.setAway(away)
		case err == nil:
			c.follow(ctx)
			continue
		default:
			c.feed.begin()
			c.feed.fail(err)
			pause = retry
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (c *clusterPolicies) setAway(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asked || c.away != why {
		c.log.Info("ClusterNetworkPolicies are not in effect", "why", why)
	}
	c.asked, c.away, c.store = true, why, nil
}

// follow runs an informer until the context ends or the API server does not have the kind any more.
func (c *clusterPolicies) follow(ctx context.Context) {
	following, end := context.WithCancel(ctx)
	defer end()
	list := func(ctx context.Context, o metav1.ListOptions) (*cnp.List, error) {
		objects, err := c.client.list(ctx, o)
		if apierrors.IsNotFound(err) {
			if _, err = c.client.absent(ctx); err == nil {
				end()
				err = errNoKind
			}
		}
		return objects, err
	}
	made := cache.NewSharedIndexInformer(source(c.feed, "", list, c.client.watch), &cnp.ClusterNetworkPolicy{}, 0,
		cache.Indexers{})
	// Fails only for an informer that runs.
	_ = made.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if !apierrors.IsNotFound(err) {
			c.feed.fail(err)
			cache.DefaultWatchErrorHandler(ctx, r, err)
		}
	})
	handled, err := handle(cnp.Resource, made, trimClusterPolicy, func(obj any, _ bool) { c.set(obj) }, c.delete)
	if err != nil {
		c.log.Error("ClusterNetworkPolicies are not in effect", "err", err) // it is a new informer
		return
	}
	c.mu.Lock()
	if c.away != "" {
		c.log.Info("the API server has ClusterNetworkPolicies by now")
	}
	c.asked, c.away, c.store, c.emitted = true, "", made.GetStore(), handled
	c.mu.Unlock()
	made.Run(following.Done())
	if ctx.Err() != nil {
		return // the policies hold
	}
	for _, key := range made.GetStore().ListKeys() {
		c.delete(key)
	}
}

// absent says why there are no policies, or "" when the kind is followed or it is not known yet.
func (c *clusterPolicies) absent() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away
}

// synced says that what existed at the start was emitted, or that there is no such kind.
func (c *clusterPolicies) synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away != "" || c.emitted != nil && c.emitted()
}

func (c *clusterPolicies) set(obj any) {
	if p, ok := obj.(*cnp.ClusterNetworkPolicy); ok {
		c.emit(state.SetPolicy{Policy: ClusterNetworkPolicy(p)})
		c.gate.setPolicy(model.ClusterNetworkPolicy(p.Name), p.ResourceVersion)
	}
}

func (c *clusterPolicies) delete(name string) {
	c.emit(state.DeletePolicy{ID: model.ClusterNetworkPolicy(name)})
	c.gate.deletePolicy(model.ClusterNetworkPolicy(name))
}

// objects are the policies that are followed.
func (c *clusterPolicies) objects() []any {
	c.mu.Lock()
	store := c.store
	c.mu.Unlock()
	if store == nil {
		return nil
	}
	return store.List()
}

// versions are those of the policies that the API server has now. Pods that start wait for them (see gate). While the
// kind is away they do not: what is applied with the kind is not older than the pods.
func (c *clusterPolicies) versions(ctx context.Context) (map[model.PolicyID]string, error) {
	versions := map[model.PolicyID]string{}
	if c.absent() != "" {
		return versions, nil
	}
	list, err := c.client.list(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		list = &cnp.List{}
		_, err = c.client.absent(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("list the ClusterNetworkPolicies: %w", err)
	}
	for _, p := range list.Items {
		versions[model.ClusterNetworkPolicy(p.Name)] = p.ResourceVersion
	}
	return versions, nil
}

// ClusterPoliciesAbsent says why no ClusterNetworkPolicies are in effect, or "".
func (w *Watcher) ClusterPoliciesAbsent() string { return w.cluster.absent() }

func trimClusterPolicy(obj any) (any, error) {
	p, ok := obj.(*cnp.ClusterNetworkPolicy)
	if !ok {
		return obj, nil
	}
	return &cnp.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, ResourceVersion: p.ResourceVersion,
			Annotations: kept(p.Annotations, LogAnnotation, StagedAnnotation)},
		Spec: p.Spec,
	}, nil
}

// clusterClient is the API of ClusterNetworkPolicies over a client's connection.
type clusterClient struct{ kubernetes.Interface }

// errNoKind is the answer of clients that are not connected to a server, such as client-go's fake.
var errNoKind = apierrors.NewNotFound(cnp.GroupVersion.WithResource(cnp.Resource).GroupResource(), "")

// request begins a request to the API's group, or is nil for a client without a connection.
func (c clusterClient) request(path ...string) *rest.Request {
	client, ok := c.CoreV1().RESTClient().(*rest.RESTClient)
	if !ok || client == nil {
		return nil
	}
	return client.Get().AbsPath(append([]string{"/apis", cnp.GroupVersion.Group}, path...)...).
		SetHeader("Accept", runtime.ContentTypeJSON)
}

// fetch decodes the answer to a request.
func fetch(ctx context.Context, r *rest.Request, into any) error {
	if r == nil {
		return errNoKind
	}
	data, err := r.Do(ctx).Raw()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("decode the API server's answer: %w", err)
	}
	return nil
}

func (c clusterClient) list(ctx context.Context, o metav1.ListOptions) (*cnp.List, error) {
	list, r := &cnp.List{}, c.request(cnp.GroupVersion.Version, cnp.Resource)
	if r != nil {
		r = r.VersionedParams(&o, scheme.ParameterCodec)
	}
	return list, fetch(ctx, r, list)
}

func (c clusterClient) get(ctx context.Context, name string) (*cnp.ClusterNetworkPolicy, error) {
	p := &cnp.ClusterNetworkPolicy{}
	return p, fetch(ctx, c.request(cnp.GroupVersion.Version, cnp.Resource, name), p)
}

// absent says why the kind is not found, after an answer of 404, if the server's lists of its APIs agree. Otherwise it
// returns an error: a proxy, or a server that starts, may answer so, and that must not end policies.
func (c clusterClient) absent(ctx context.Context) (why string, err error) {
	var group metav1.APIGroup
	missing := "the API server has no " + cnp.GroupVersion.String()
	switch err := fetch(ctx, c.request(), &group); {
	case apierrors.IsNotFound(err) || err == nil && len(group.Versions) == 0:
		return missing + " (install the CustomResourceDefinition to use ClusterNetworkPolicies)", nil
	case err != nil:
		return "", fmt.Errorf("ask for the versions of %s: %w", cnp.GroupVersion.Group, err)
	}
	var versions []string
	for _, v := range group.Versions {
		versions = append(versions, v.Version)
	}
	if !slices.Contains(versions, cnp.GroupVersion.Version) {
		return missing + ", but " + strings.Join(versions, ", "), nil
	}
	var list metav1.APIResourceList
	if err := fetch(ctx, c.request(cnp.GroupVersion.Version), &list); err != nil {
		return "", fmt.Errorf("ask for the resources of %s: %s", cnp.GroupVersion, err) //nolint:errorlint // a 404 here is a fault
	}
	if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == cnp.Resource }) {
		return "", fmt.Errorf("the API server lists %s in %s, and answers a list of them with 404", cnp.Resource,
			cnp.GroupVersion)
	}
	return missing + ", resource " + cnp.Resource, nil
}

func (c clusterClient) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	r := c.request(cnp.GroupVersion.Version, cnp.Resource)
	if r == nil {
		return nil, errNoKind
	}
	o.Watch = true
	body, err := r.VersionedParams(&o, scheme.ParameterCodec).Stream(ctx)
	if err != nil {
		return nil, err
	}
	return watch.NewStreamWatcher(&decoder{body, json.NewDecoder(body)},
		apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")), nil
}

// decoder reads the events of a watch.
type decoder struct {
	io.Closer
	json *json.Decoder
}

// Close implements watch.Decoder.
func (d *decoder) Close() { _ = d.Closer.Close() } // only read from

// Decode implements watch.Decoder.
func (d *decoder) Decode() (watch.EventType, runtime.Object, error) {
	var e struct {
		Type   watch.EventType
		Object json.RawMessage
	}
	if err := d.json.Decode(&e); err != nil {
		if errors.Is(err, context.Canceled) {
			err = io.EOF
		}
		return "", nil, err
	}
	var object runtime.Object = &cnp.ClusterNetworkPolicy{}
	if e.Type == watch.Error {
		object = &metav1.Status{}
	}
	return e.Type, object, json.Unmarshal(e.Object, object)
}
