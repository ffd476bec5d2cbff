package tools

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// eventsV1 are those of the core group: both groups show one store, and rules
// see it under this name.
var eventsV1 = action.Resource{Version: "v1", Resource: "events", Kind: "Event", Namespaced: true}

const (
	// maxEvents bounds what one call fetches. The API server gives events in the
	// order of their names, so the newest can stand anywhere.
	maxEvents  = 2000
	maxMessage = 300
)

type listEventsInput struct {
	Namespace     string `json:"namespace,omitempty"`
	AllNamespaces bool   `json:"all_namespaces,omitempty"`
	Kind          string `json:"kind,omitempty" jsonschema:"of the object that they are about"`
	Name          string `json:"name,omitempty" jsonschema:"of that object"`
	Type          string `json:"type,omitempty"`
	SinceSeconds  int64  `json:"since_seconds,omitempty"`
	Limit         int64  `json:"limit,omitempty"`
}

func listEvents() *Tool {
	scopes := []action.Scope{{Verbs: []string{action.List}, Resource: "events"}}
	return define(Tool{
		Name:        "list_events",
		Title:       "List events",
		Description: "Lists events, newest first, repeated ones once.",
		Scopes:      scopes,
		Reads:       scopes,
	}, func(s *jsonschema.Schema) {
		limitRange(s)
		between(s, "since_seconds", 1, 7*24*3600)
		oneOf(s, "type", "Normal", "Warning")
	}, func(ctx context.Context, r Reader, cluster string, in listEventsInput) (Call, error) {
		selector, where := fields.Set{}, ""
		if in.Kind != "" {
			resource, err := r.Resolve(ctx, cluster, "", in.Kind)
			if err != nil {
				return Call{}, err
			}
			selector["involvedObject.kind"] = resource.Kind
			// What lives in no namespace has its events in this one.
			if !resource.Namespaced && !in.AllNamespaces {
				in.Namespace = metav1.NamespaceDefault
				where = fmt.Sprintf("A %s lives in no namespace: its events are those in namespace default.\n", resource.Kind)
			}
		}
		if err := checkWhere(eventsV1, in.Namespace, in.AllNamespaces); err != nil {
			return Call{}, err
		}
		if in.Name != "" {
			selector["involvedObject.name"] = in.Name
		}
		if in.Type != "" {
			selector["type"] = in.Type
		}
		found, more, err := readEvents(ctx, r, cluster, in.Namespace, selector, maxEvents)
		if err != nil {
			return Call{}, err
		}
		if in.SinceSeconds > 0 {
			oldest := r.Now().Add(-time.Duration(in.SinceSeconds) * time.Second)
			found = slices.DeleteFunc(found, func(e event) bool { return e.last.Before(oldest) })
		}
		return Call{Answer: eventsText(r.Now(), found, int(itemLimit(in.Limit)), in.Namespace, more) + where}, nil
	}, nil)
}

// event is what was told of one object for one reason in one message.
type event struct {
	namespace, object     string
	kind, reason, message string // kind is Normal or Warning
	first, last           time.Time
	count                 int64
}

// randomName is the end of a name that the API server has made up: five of the
// letters and digits of k8s.io/apimachinery/pkg/util/rand.
var randomName = regexp.MustCompile(`-[bcdfghjklmnpqrstvwxz2456789]{5}("|\s)`)

// readEvents reads the events that a field selector takes, newest first, the
// same one once. more says that there are others that were not fetched.
func readEvents(ctx context.Context, r Reader, cluster, namespace string, selector fields.Set, limit int64) (found []event, more bool, err error) {
	response, err := r.Read(ctx, action.Action{
		Cluster: cluster, Verb: action.List, Resource: eventsV1, Namespace: namespace,
		Options: action.Options{FieldSelector: selector.AsSelector().String(), Limit: limit},
	})
	if err != nil {
		return nil, false, err
	}
	var list struct {
		Metadata metav1.ListMeta `json:"metadata"`
		Items    []corev1.Event  `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &list); err != nil {
		return nil, false, fmt.Errorf("reading the events: %w", err)
	}
	type key struct{ namespace, object, kind, reason, message string }
	at := map[key]int{}
	for _, e := range list.Items {
		one := event{
			namespace: e.Namespace, object: e.InvolvedObject.Kind + "/" + e.InvolvedObject.Name, kind: e.Type, reason: e.Reason,
			message: audit.MaskText(plainText([]byte(e.Message))), count: int64(e.Count),
		}
		one.first, one.last = times(e)
		if e.Series != nil {
			one.count = int64(e.Series.Count)
		}
		one.count = max(one.count, 1)
		k := key{one.namespace, one.object, one.kind, one.reason, one.message}
		if one.reason == "FailedCreate" { // of a pod that has a new name each time
			k.message = randomName.ReplaceAllString(k.message, "-*$1")
		}
		i, seen := at[k]
		if !seen {
			at[k] = len(found)
			found = append(found, one)
			continue
		}
		found[i].count += one.count
		if one.first.Before(found[i].first) {
			found[i].first = one.first
		}
		if one.last.After(found[i].last) {
			found[i].last, found[i].message = one.last, one.message
		}
	}
	slices.SortStableFunc(found, func(a, b event) int { return b.last.Compare(a.last) })
	return found, list.Metadata.Continue != "", nil
}

// times are when an event was first and last seen: in fields of their own in
// those of older reporters, in one field and a series in those of newer ones.
func times(e corev1.Event) (first, last time.Time) {
	first, last = e.FirstTimestamp.Time, e.LastTimestamp.Time
	if first.IsZero() {
		first = cmp.Or(e.EventTime.Time, e.CreationTimestamp.Time)
	}
	if e.Series != nil {
		last = e.Series.LastObservedTime.Time
	}
	return first, cmp.Or(last, first)
}

func eventsText(now time.Time, found []event, limit int, namespace string, more bool) string {
	var unseen string
	if more {
		unseen = fmt.Sprintf("There are more than the %d that were looked at: narrow with kind and name, or type.\n", maxEvents)
	}
	if len(found) == 0 {
		return "No events found.\n" + unseen
	}
	var rows rows
	head := []string{"LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"}
	if namespace == "" {
		head = slices.Insert(head, 0, "NAMESPACE")
	}
	rows.add(head)
	for _, e := range found[:min(len(found), limit)] {
		cells := []string{e.seen(now), e.kind, e.reason, e.object, clip(e.message, maxMessage)}
		if namespace == "" {
			cells = slices.Insert(cells, 0, e.namespace)
		}
		for i, cell := range cells {
			cells[i] = strings.Join(strings.Fields(cell), " ")
		}
		if !rows.add(cells) {
			break
		}
	}
	text, shown := rows.table()
	if shown < len(found) {
		text += fmt.Sprintf("The newest %d of %d: narrow with kind and name, type or since_seconds.\n", shown, len(found))
	}
	return text + unseen
}

// seen is when, as kubectl describe writes it: "2m (x5 over 1h)".
func (e event) seen(now time.Time) string {
	text := duration.HumanDuration(now.Sub(e.last))
	if e.count > 1 {
		text += fmt.Sprintf(" (x%d over %s)", e.count, duration.HumanDuration(now.Sub(e.first)))
	}
	return text
}

// clip bounds a text of one line, in characters.
func clip(text string, most int) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return text
}
