package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// failingAfter is how long a watch may fail before that is a problem. A restart of the API server takes less.
	failingAfter = 30 * time.Second
	// silentAfter is how long a watch may be silent without an error. API servers send a bookmark about once a minute
	// (k8s.io/apiserver, bookmarkFrequency).
	silentAfter = 150 * time.Second
	// steadyAfter is how long a watch without events has to stand until the error before it is over.
	steadyAfter = 2 * time.Second
	// askTimeout bounds the question that a silent watch leads to.
	askTimeout = 10 * time.Second
)

// errSilent is the error of a watch that is open and sends nothing. Only a list, an event or a bookmark ends it: a
// proxy that stands still accepts the next watch, too.
var errSilent = errors.New("the watch is silent")

// errEnded is the error of a watch that ended before anything came. client-go makes such a one of a connection that
// closes without an answer, as those to a load balancer without servers do, and its informer begins the next without an
// error.
var errEnded = errors.New("the watch ended at once, without an answer")

// feed follows the objects of one resource, and how current they are. Any goroutine may use it.
type feed struct {
	resource string

	// silence is how long a watch may be silent until the API server is asked why. It is set before the informer runs.
	silence time.Duration

	mu     sync.Mutex
	begun  time.Time // when it was first asked for
	heard  time.Time // when a list ended, a watch began, or an event or bookmark came
	opened time.Time // when the watch that is open began; zero when none is
	err    error     // of the last list or watch, unless a watch has stood since
	failed time.Time // when err was nil last
}

// FeedStatus says how current the objects of one resource are.
type FeedStatus struct {
	Resource string
	// Heard is when the API server last told anything of the resource; zero when it has not yet.
	Heard time.Time
	// Waiting is how long ago that is, or that the resource was first asked for.
	Waiting time.Duration
	// Err is why the last list or watch failed, unless a watch has stood since.
	Err error
	// Failing is for how long there have been errors.
	Failing time.Duration
}

// problem says for how long there have been no news, and why, or "". The text does not change while the fault lasts.
func (s FeedStatus) problem() string {
	switch {
	case s.Err != nil && !errors.Is(s.Err, errSilent) && s.Failing > failingAfter:
		return failingAfter.String() + ": " + s.Err.Error()
	case s.Waiting > silentAfter:
		return silentAfter.String() + ", although the API server sends a bookmark every minute"
	}
	return ""
}

func (f *feed) status(now time.Time) FeedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.opened.IsZero() && now.Sub(f.opened) >= steadyAfter && !errors.Is(f.err, errSilent) {
		f.err = nil
	}
	s := FeedStatus{Resource: f.resource, Heard: f.heard, Err: f.err}
	if f.err != nil {
		s.Failing = now.Sub(f.failed)
	}
	switch {
	case !f.heard.IsZero():
		s.Waiting = now.Sub(f.heard)
	case !f.begun.IsZero():
		s.Waiting = now.Sub(f.begun)
	}
	return s
}

func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun.IsZero() {
		f.begun = time.Now()
	}
}

// hear notes an answer about the resource. It does not end an error: the list may be well while the watch fails.
func (f *feed) hear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = time.Now()
}

// open notes that a watch has begun, or has ended.
func (f *feed) open(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = time.Time{}
	if !is {
		return
	}
	f.opened = time.Now()
	if !errors.Is(f.err, errSilent) {
		f.heard = f.opened
	}
}

// follows notes an event or a bookmark of the watch.
func (f *feed) follows() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard, f.err = time.Now(), nil
}

// fail notes an error. A watch that ends is none; one that has to list again is, until it stands. (A request that ends
// without an answer wraps io.EOF; the informer says io.EOF itself of a watch that ended.)
func (f *feed) fail(err error) {
	if err == nil || err == io.EOF || errors.Is(err, context.Canceled) { //nolint:errorlint // see above
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.failed = time.Now()
	}
	f.err = err
}

// source lists and watches one resource for an informer, with a label selector or none.
func source[L runtime.Object](
	f *feed, selector string,
	list func(context.Context, metav1.ListOptions) (L, error),
	watching func(context.Context, metav1.ListOptions) (watch.Interface, error),
) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			f.begin()
			o.LabelSelector = selector
			objects, err := list(ctx, o)
			if err != nil {
				f.fail(err)
				return nil, err
			}
			f.hear()
			return objects, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			f.begin()
			o.LabelSelector = selector
			w, err := watching(ctx, o)
			if err != nil {
				f.fail(err)
				return nil, err
			}
			return newHeard(w, f, func() error {
				ctx, cancel := context.WithTimeout(ctx, askTimeout)
				defer cancel()
				return goneBack(ctx, list, o)
			}), nil
		},
	}
}

// goneBack returns an error that makes an informer list again if the API server's objects are older than those that a
// watch began with: from a restored backup, or from a member of etcd that is behind for good. Such a watch would stay
// silent until the versions reach the one that it began with, and miss all changes until then. Versions of one resource
// compare (KEP-5504). An error of the question is not returned: the next watch tells.
func goneBack[L runtime.Object](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error),
	watch metav1.ListOptions) error {
	// Without a version the answer is the newest state.
	objects, err := list(ctx, metav1.ListOptions{LabelSelector: watch.LabelSelector, Limit: 1})
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	have, err := meta.ListAccessor(objects)
	if err != nil || reached(have.GetResourceVersion(), watch.ResourceVersion) {
		return nil //nolint:nilerr // a list is one
	}
	return apierrors.NewResourceExpired(fmt.Sprintf("the API server's version went back from %s to %s",
		watch.ResourceVersion, have.GetResourceVersion()))
}

// heard is a watch whose events a feed notes. One that is silent ends, so that the informer begins another.
type heard struct {
	watch.Interface
	feed   *feed
	events chan watch.Event
	stop   chan struct{}
	once   sync.Once
}

// newHeard begins to hear a watch. When it is silent, goneBack says whether the informer has to list again.
func newHeard(w watch.Interface, f *feed, goneBack func() error) *heard {
	h := &heard{Interface: w, feed: f, events: make(chan watch.Event), stop: make(chan struct{})}
	f.open(true)
	go h.run(goneBack)
	return h
}

func (h *heard) run(goneBack func() error) {
	defer close(h.events)
	defer h.feed.open(false)
	silence := time.NewTimer(h.feed.silence)
	defer silence.Stop()
	begun, heard := time.Now(), false
	for {
		var e watch.Event
		var ok bool
		select {
		case e, ok = <-h.Interface.ResultChan():
			if !ok {
				h.ended(heard || time.Since(begun) >= steadyAfter)
				return
			}
			heard = true
		case <-silence.C:
			h.feed.fail(errSilent)
			var status *apierrors.StatusError
			if !errors.As(goneBack(), &status) {
				return
			}
			e = watch.Event{Type: watch.Error, Object: &status.ErrStatus}
		}
		if e.Type == watch.Error {
			h.feed.fail(apierrors.FromObject(e.Object))
		} else {
			h.feed.follows()
		}
		select {
		case h.events <- e:
		case <-h.stop:
			return
		}
		silence.Reset(h.feed.silence)
	}
}

// ended notes the end of a watch, which is an error if it has not stood and the informer did not end it.
func (h *heard) ended(stood bool) {
	select {
	case <-h.stop:
	default:
		if !stood {
			h.feed.fail(errEnded)
		}
	}
}

func (h *heard) ResultChan() <-chan watch.Event { return h.events }

func (h *heard) Stop() {
	h.once.Do(func() { close(h.stop) })
	h.Interface.Stop()
}

// Feeds say how current what the watcher has is, one entry for each resource, in a fixed order.
func (w *Watcher) Feeds() []FeedStatus { return w.feedsAt(time.Now()) }

func (w *Watcher) feedsAt(now time.Time) []FeedStatus {
	list := make([]FeedStatus, 0, len(w.feeds))
	for _, f := range w.feeds {
		absent := f == w.cidrs.feed && w.cidrs.absent.Load() || f == w.cluster.feed && w.cluster.absent() != ""
		if !absent {
			list = append(list, f.status(now))
		}
	}
	return list
}

// Lag says which resources are not current, with one sentence for each cause; nil when all are.
func (w *Watcher) Lag() error { return w.lagAt(time.Now()) }

func (w *Watcher) lagAt(now time.Time) error {
	var causes []string
	byCause := map[string][]string{}
	for _, s := range w.feedsAt(now) {
		if cause := s.problem(); cause != "" {
			if byCause[cause] == nil {
				causes = append(causes, cause)
			}
			byCause[cause] = append(byCause[cause], s.Resource)
		}
	}
	var errs []error
	for _, cause := range causes {
		errs = append(errs, fmt.Errorf("no news of %s for more than %s", strings.Join(byCause[cause], ", "), cause))
	}
	return errors.Join(errs...)
}
