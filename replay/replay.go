package replay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// Sandbox is the cluster in which a session is repeated.
type Sandbox interface {
	// UID is that of its namespace kube-system.
	UID(ctx context.Context) (string, error)
	// Send sends one request, bounded in time, under an Audit-ID that begins with the
	// id of an operation. The error is a *Refusal when the API server answered.
	Send(ctx context.Context, op string, a action.Action) (code int, body []byte, err error)
}

// Refusal is the sandbox's answer to a request that it does not carry out. Its
// message is masked.
type Refusal struct {
	Code    int
	Message string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (code %d)", r.Message, r.Code) }

// refused reports whether an error is an answer of one of these codes.
func refused(err error, codes ...int) bool {
	var r *Refusal
	return errors.As(err, &r) && slices.Contains(codes, r.Code)
}

// manager owns the fields of what replay itself puts into the sandbox.
const manager = "countersign-replay"

// What became of one request.
const (
	Same        = "same"
	Diverged    = "diverged"
	NotReplayed = "not_replayed"
)

// Report is what a replay found.
type Report struct {
	Session string `json:"session"`
	// Shared says that several callers gave this name to a session. What each of them
	// changed is repeated.
	Shared bool `json:"shared,omitempty"`
	// Cluster is the one whose changes were repeated, empty where there are none.
	Cluster  string   `json:"cluster,omitempty"`
	Prepared []Object `json:"prepared,omitempty"`
	Steps    []Step   `json:"steps"`
	// Final are the touched objects, as they are at the end.
	Final []Object `json:"final,omitempty"`
	// StandIns counts the places where something is masked on record.
	StandIns int `json:"stand_ins"`
	// Diverged counts the steps and objects that are otherwise than on record.
	Diverged int `json:"diverged"`
}

// Step is one recorded request, or a call that came to none.
type Step struct {
	Op     string `json:"op"`
	Tool   string `json:"tool,omitempty"`
	Action string `json:"action,omitempty"`
	Result string `json:"result"`
	// Why says why it was not replayed, or what there is to know of how it was.
	Why string `json:"why,omitempty"`
	// Recorded and Sandbox are the codes of the two answers.
	Recorded    int          `json:"recorded_code,omitempty"`
	Sandbox     int          `json:"sandbox_code,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	// StandIns are where stand-ins were put in the request's body, as JSON Pointers.
	StandIns []string `json:"stand_ins,omitempty"`
}

// Object is one object of the sandbox.
type Object struct {
	Object      string       `json:"object"`
	Result      string       `json:"result,omitempty"`
	Why         string       `json:"why,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	StandIns    []string     `json:"stand_ins,omitempty"`
}

// Run repeats a session. cluster says of which cluster's changes, where the session
// has some of several. The report is there after an error too, once something was sent.
func Run(ctx context.Context, log Log, sandbox Sandbox, id, cluster string) (*Report, error) {
	s, err := read(log, id)
	if err != nil {
		return nil, err
	}
	r := &run{
		session: s, sandbox: sandbox, report: &Report{Session: id, Shared: len(s.callers) > 1},
		ready: map[target]bool{}, prepared: map[target]bool{}, missing: map[target]bool{}, last: map[target]end{},
	}
	if r.report.Cluster, err = s.choose(cluster); err != nil {
		return nil, err
	}
	if r.report.Cluster != "" {
		if err := r.check(ctx); err != nil {
			return nil, err
		}
	}
	for _, o := range s.calls {
		if o.started == nil {
			r.report.Steps = append(r.report.Steps, Step{Op: o.id, Tool: o.tool, Result: NotReplayed, Why: o.ended})
		}
	}
	for _, o := range s.sent {
		if err := r.repeat(ctx, o); err != nil {
			return r.report, fmt.Errorf("repeating operation %s: %w", o.id, err)
		}
	}
	if err := r.finish(ctx); err != nil {
		return r.report, fmt.Errorf("comparing what is there at the end: %w", err)
	}
	return r.report, nil
}

// choose says which cluster's changes are repeated.
func (s *session) choose(cluster string) (string, error) {
	names := slices.Sorted(maps.Keys(s.clusters()))
	switch {
	case cluster != "" && !slices.Contains(names, cluster):
		return "", fmt.Errorf("the session changed nothing in a cluster %q; it did in: %s", cluster, strings.Join(names, ", "))
	case cluster != "" || len(names) == 0:
		return cluster, nil
	case len(names) > 1:
		return "", fmt.Errorf("the session changed several clusters, and the sandbox can be one of them at a time: choose with --cluster %s", strings.Join(names, " or "))
	}
	return names[0], nil
}

// check refuses a sandbox that is a cluster of the log, or may be. It only reads.
func (r *run) check(ctx context.Context) error {
	for name, runs := range r.clusters() {
		for _, n := range runs {
			if r.seen[name][n] == "" {
				return fmt.Errorf("refused: the log does not say which cluster %q is, so it cannot be told from the sandbox. "+
					"Let the server get the namespace kube-system there (docs/clusters.md); sessions from then on can be replayed", name)
			}
		}
	}
	uid, err := r.sandbox.UID(ctx)
	if err != nil {
		return fmt.Errorf("asking the sandbox which cluster it is (the namespace kube-system): %w", err)
	}
	if name, known := r.uids[uid]; known {
		return fmt.Errorf("refused: the sandbox is the cluster %q of this log. Nothing was written. Take a cluster that this server does not govern", name)
	}
	for at, operations := range r.touches {
		uids := map[string]bool{}
		var one audit.Action
		for _, o := range operations {
			for _, a := range o.actions {
				if targetOf(a) == at && a.UID != "" {
					uids[a.UID], one = true, a
				}
			}
		}
		if len(uids) == 0 || at.name == "" {
			continue
		}
		get := action.Action{Verb: action.Get, Resource: resourceOf(one), Namespace: at.namespace, Name: at.name}
		object, err := r.get(ctx, "check", get)
		if err != nil {
			return fmt.Errorf("looking whether %s of the sandbox is that of the session: %w", at, err)
		}
		if uids[uidOf(object)] {
			return fmt.Errorf("refused: %s of the sandbox is the very object that the session was about. Nothing was written. Take another cluster", at)
		}
	}
	return nil
}

func uidOf(object map[string]any) string {
	meta, _ := object["metadata"].(map[string]any)
	uid, _ := meta["uid"].(string)
	return uid
}

// run is a replay on its way.
type run struct {
	*session
	sandbox Sandbox
	report  *Report
	// ready are the objects that were seen to, prepared those that replay has made, and
	// missing those that are not there and of which no state is on record.
	ready, prepared, missing map[target]bool
	// last is where the latest answer about each object is on record.
	last  map[target]end
	order []target
}

// end is an action of an operation, as it was sent.
type end struct {
	o *operation
	i int
	a action.Action
}

// get reads an object, nil where there is none.
func (r *run) get(ctx context.Context, op string, a action.Action) (map[string]any, error) {
	_, body, err := r.sandbox.Send(ctx, op, a)
	if refused(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
		return nil, errors.New("what answers is no API server: it gives no object")
	}
	return object, nil
}

// repeat repeats what one operation changed.
func (r *run) repeat(ctx context.Context, o *operation) error {
	plan, found, err := r.planOf(o)
	if err != nil {
		return err
	}
	answers, err := r.answersOf(o)
	if err != nil {
		return err
	}
	if o.cut {
		r.report.Diverged++
		r.report.Steps = append(r.report.Steps, Step{Op: o.id, Tool: o.tool, Result: Diverged, Why: "not all of its requests fitted into its records"})
	}
	for i, recorded := range o.actions {
		step := Step{Op: o.id, Tool: o.tool, Action: nameOf(recorded), Result: NotReplayed, Recorded: recorded.Code}
		done, why := o.done(i)
		switch {
		case (action.Action{Verb: recorded.Verb}).ReadOnly():
			step.Why = "it was a read"
		case recorded.Cluster != r.report.Cluster:
			step.Why = "it was of cluster " + recorded.Cluster
		case recorded.Subresource == action.Exec:
			step.Why = "it was a command, which leaves nothing to compare"
		case recorded.Subresource == action.Eviction:
			step.Why = "it was an eviction: which pods there are is up to the cluster"
		case !done:
			step.Why = why
		case !found || i >= len(plan.Actions):
			step.Result, step.Why = Diverged, "the log does not hold the request any more"
			r.report.Diverged++
		default:
			if err := r.step(ctx, end{o, i, plan.Actions[i]}, answers[i], &step); err != nil {
				return fmt.Errorf("%s: %w", step.Action, err)
			}
		}
		r.report.Steps = append(r.report.Steps, step)
	}
	return nil
}

// nameOf says what a recorded request was.
func nameOf(a audit.Action) string {
	sent := action.Action{Verb: a.Verb, Resource: resourceOf(a), Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name}
	if a.Patch == action.ApplyPatch.Short() {
		sent.Options.PatchType = action.ApplyPatch
	}
	return sent.String()
}

// step sends one request and compares the answer with the recorded one.
func (r *run) step(ctx context.Context, e end, answer map[string]any, step *Step) error {
	recorded := e.o.actions[e.i]
	a, at := e.a, targetOf(recorded)
	if a.Verb == action.Create && a.Name == "" { // under the name that was made up then
		a.Name = recorded.Name
		if body, ok := a.Body.(map[string]any); ok {
			if meta, ok := body["metadata"].(map[string]any); ok {
				meta["name"] = recorded.Name
			}
		}
	}
	e.a = a
	if err := r.prepare(ctx, e, at); err != nil {
		return err
	}
	a.Body, step.StandIns = fill(a)
	r.report.StandIns += len(step.StandIns)

	code, body, err := r.sandbox.Send(ctx, e.o.id, a)
	if r.prepared[at] && a.Options.PatchType == action.ApplyPatch && !a.Options.Force && refused(err, http.StatusConflict) {
		// What is made from a state on record has replay for its fields' owner.
		a.Options.Force = true
		step.Why = "sent with force, because who owned which field is not on record"
		code, body, err = r.sandbox.Send(ctx, e.o.id, a)
	}
	if _, seen := r.last[at]; !seen {
		r.order = append(r.order, at)
	}
	r.last[at] = e
	var refusal *Refusal
	if err != nil && !errors.As(err, &refusal) {
		return err
	}
	step.Result = Same
	switch {
	case refusal != nil:
		step.Result, step.Sandbox, step.Why = Diverged, refusal.Code, "the sandbox refused it: "+refusal.Message
	case a.Removes():
		step.Sandbox = code
		if err := r.gone(ctx, e, at); err != nil {
			return err
		}
	default:
		step.Sandbox = code
		if answer == nil {
			step.Why = "its answer is not on record: it is compared that it succeeds, and no more"
			break
		}
		var object map[string]any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
			return errors.New("what answers is no API server: it gives no object")
		}
		if step.Differences = compare(answer, object); step.Differences != nil || code != recorded.Code {
			step.Result = Diverged
		}
	}
	if step.Result == Diverged {
		r.report.Diverged++
		if r.missing[at] {
			step.Why = strings.TrimPrefix(step.Why+". ", ". ") + at.String() + " was there before, and how it was is not on record: " +
				"put it into the sandbox with kubectl, and replay once more"
		}
	}
	return nil
}

// gone waits until an object has gone of which there is more to come in the session.
func (r *run) gone(ctx context.Context, e end, at target) error {
	all := r.touches[at]
	if all[len(all)-1] == e.o {
		return nil
	}
	get := action.Action{Verb: action.Get, Resource: e.a.Resource, Namespace: at.namespace, Name: at.name}
	for range 100 {
		if object, err := r.get(ctx, e.o.id, get); object == nil || err != nil {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil // what comes next says that it is still there
}

var namespaces = action.Resource{Version: "v1", Resource: "namespaces", Kind: "Namespace"}

// prepare sees to it, before the first request about an object, that it is there
// as the session found it, and that its Namespace is.
func (r *run) prepare(ctx context.Context, e end, at target) error {
	if r.ready[at] {
		return nil
	}
	r.ready[at] = true
	if in := (target{"namespaces", "", at.namespace}); at.namespace != "" && !r.ready[in] {
		r.ready[in] = true
		if err := r.put(ctx, e.o, in, namespaces); err != nil {
			return err
		}
	}
	if e.a.Subresource == "" && e.o.actions[e.i].Code == http.StatusCreated {
		return nil // it was not there before
	}
	return r.put(ctx, e.o, at, e.a.Resource)
}

// put makes an object as it was, unless there is one of its name.
func (r *run) put(ctx context.Context, o *operation, at target, resource action.Resource) error {
	object, err := r.get(ctx, o.id, action.Action{Verb: action.Get, Resource: resource, Namespace: at.namespace, Name: at.name})
	if object != nil || err != nil {
		return err
	}
	state, by, err := r.before(at)
	if err != nil {
		return err
	}
	why := "as it was before operation " + o.id
	switch {
	case state != nil && by != o:
		why = "as it was before operation " + by.id + ", the first that looked at it"
	case state == nil && at.resource == "namespaces":
		state, why = map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": at.name}}, "bare: its state is not on record"
	case state == nil:
		r.missing[at] = true
		return nil
	}
	create := action.Action{
		Verb: action.Create, Resource: resource, Namespace: at.namespace, Name: at.name,
		Body: original(state), Options: action.Options{FieldManager: manager},
	}
	made := Object{Object: at.String(), Result: Same, Why: why}
	create.Body, made.StandIns = fill(create)
	r.report.StandIns += len(made.StandIns)
	_, _, err = r.sandbox.Send(ctx, o.id, create)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		made.Result, made.Why = Diverged, why+": the sandbox refused it: "+refusal.Message
		r.report.Diverged++
		err = nil
	} else if err == nil {
		r.prepared[at] = true
	}
	r.report.Prepared = append(r.report.Prepared, made)
	return err
}

// finish compares each touched object with its last answer on record.
func (r *run) finish(ctx context.Context) error {
	for _, at := range r.order {
		e := r.last[at]
		get := action.Action{Verb: action.Get, Resource: e.a.Resource, Subresource: e.a.Subresource, Namespace: at.namespace, Name: at.name}
		object, err := r.get(ctx, e.o.id, get)
		if err != nil {
			return err
		}
		answers, err := r.answersOf(e.o)
		if err != nil {
			return err
		}
		there := Object{Object: at.String(), Result: Same}
		switch answer := answers[e.i]; {
		case e.a.Removes():
			if meta, _ := object["metadata"].(map[string]any); object != nil && meta["deletionTimestamp"] == nil {
				there.Result, there.Why = Diverged, "it was deleted, and is in the sandbox"
			}
		case object == nil:
			there.Result, there.Why = Diverged, "it is not in the sandbox"
		case answer == nil:
			there.Why = "its last answer is not on record: it is there, and no more is known"
		default:
			if there.Differences = compare(answer, object); there.Differences != nil {
				there.Result = Diverged
			}
		}
		if there.Result == Diverged {
			r.report.Diverged++
		}
		r.report.Final = append(r.report.Final, there)
	}
	return nil
}
