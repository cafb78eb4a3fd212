package apiserver

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// bookmarkEvery is how often a watch that has nothing to say tells its version.
const bookmarkEvery = time.Minute

// serveWatch streams changes until the client goes away or its time is up.
func (s *Store) serveWatch(w http.ResponseWriter, req *http.Request, resource string, r resourceInfo,
	selected selection) {
	q := req.URL.Query()
	var timeout <-chan time.Time
	if seconds, err := strconv.Atoi(q.Get("timeoutSeconds")); err == nil && seconds > 0 {
		timer := time.NewTimer(time.Duration(seconds) * time.Second)
		defer timer.Stop()
		timeout = timer.C
	}
	w.Header().Set("Content-Type", "application/json")
	out := &stream{w: w, json: json.NewEncoder(w), r: r, bookmarks: q.Get("allowWatchBookmarks") == "true"}
	version, err := strconv.ParseUint(q.Get("resourceVersion"), 10, 64)
	if err != nil || version == 0 || q.Get("sendInitialEvents") == "true" {
		var objects []Object
		objects, version = s.List(resource)
		for _, o := range objects {
			out.change(watch.Added, o, selected)
		}
		if q.Get("sendInitialEvents") == "true" {
			out.bookmark(version, map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		}
	}
	// Sends the header, so that the client knows that it watches.
	out.flush()
	ticker := time.NewTicker(bookmarkEvery)
	defer ticker.Stop()
	for out.err == nil {
		changes, now, more, ok := s.since(version)
		if !ok {
			out.send(watch.Error, expired("the history does not go back to version "+strconv.FormatUint(version, 10)))
			return
		}
		for _, c := range changes {
			if c.resource == resource {
				out.change(c.kind, c.object, selected)
			}
		}
		// A watch from a version that is still to come hears nothing before it, like that of a real API server.
		ahead := version > now
		version = max(version, now)
		out.flush()
		select {
		case <-more:
		case <-ticker.C:
			if !ahead {
				out.bookmark(version, nil)
			}
		case <-timeout:
			return
		case <-req.Context().Done():
			return
		}
	}
}

// expired says that a watch has to list again.
func expired(why string) metav1.Status {
	status := apierrors.NewResourceExpired(why).Status()
	status.APIVersion, status.Kind = "v1", "Status"
	return status
}

// stream writes one watch's events and remembers the first error, after which the client is gone.
type stream struct {
	w         http.ResponseWriter
	json      *json.Encoder
	r         resourceInfo
	bookmarks bool
	err       error
}

func (s *stream) send(kind watch.EventType, object any) {
	if s.err != nil {
		return
	}
	s.err = s.json.Encode(struct {
		Type   watch.EventType `json:"type"`
		Object any             `json:"object"`
	}{kind, object})
}

// change sends a change if it concerns the client. An object that is no longer selected is as good as deleted; the
// client ignores the deletion of what it never saw.
func (s *stream) change(kind watch.EventType, o Object, selected selection) {
	switch {
	case selected.has(o):
		s.send(kind, o)
	case kind == watch.Modified:
		s.send(watch.Deleted, o)
	}
}

func (s *stream) bookmark(version uint64, annotations map[string]string) {
	if !s.bookmarks {
		return
	}
	o := s.r.empty()
	o.GetObjectKind().SetGroupVersionKind(s.r.gvk())
	o.SetResourceVersion(strconv.FormatUint(version, 10))
	o.SetAnnotations(annotations)
	s.send(watch.Bookmark, o)
	s.flush()
}

func (s *stream) flush() {
	if f, ok := s.w.(http.Flusher); ok {
		f.Flush()
	}
}
