package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/jsonschema-go/jsonschema"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"countersign/action"
)

// Resolver turns what people call a kind into the one resource that the
// cluster serves. Its errors are for the agent: an unknown kind names near ones.
type Resolver interface {
	// Resolve takes a plural, singular, short name or kind, with or without
	// group: "deploy", "Deployment", "deployments.apps". apiVersion is empty or
	// as in a manifest, "apps/v1"; with it the kind must be served in that version.
	Resolve(ctx context.Context, cluster, apiVersion, kind string) (action.Resource, error)
}

// Tool is one tool, as a value.
type Tool struct {
	Name        string
	Title       string
	Description string
	// Scopes bound every Plan that the tool can make. Tools about the caller's
	// own operations have none: they send nothing to a cluster.
	Scopes []action.Scope
	// Reads bound what the tool may ask a cluster for while it plans. A tool that
	// reads does not always do the same again.
	Reads []action.Scope
	// Schema is the JSON Schema of the arguments.
	Schema json.RawMessage

	// everywhere is for a tool that is about all clusters and takes none.
	everywhere bool

	resolved *jsonschema.Resolved
	names    []string // of the arguments, for error texts
	clusters []string
	plan     func(ctx context.Context, r Reader, cluster string, args map[string]any) (Call, error)
	render   func([]Response) (string, error)
}

// Call is one tool call, understood.
type Call struct {
	Plan action.Plan
	// Args are the arguments as given, for policy and for the record; what the
	// Plan carries as a body is left out.
	Args map[string]any
	// Reason is what the agent says why.
	Reason string
	// Operation is set instead of a Plan by the tools about operations.
	Operation *OperationCall
	// Answer is set instead of a Plan by a tool that has asked all that it needs
	// while it planned: text from the cluster, with the values of Secrets masked.
	Answer string
	// Same, where set, is what tells this call from others instead of its Plan,
	// which holds the time: calls that say the same here ask people once.
	Same string
}

// OperationVerb is what a call about an operation wants.
type OperationVerb string

// The verbs of the tools about operations.
const (
	GetOperation    OperationVerb = "get"
	WaitOperation   OperationVerb = "wait"
	CancelOperation OperationVerb = "cancel"
	ListOperations  OperationVerb = "list"
)

// OperationCall is a call about one of the caller's own operations.
type OperationCall struct {
	Verb OperationVerb
	ID   string
	Wait time.Duration
	// OpenOnly leaves out of a list what is over.
	OpenOnly bool
}

// Response is what the API server answered to one Action.
type Response struct {
	Action action.Action
	Body   []byte
	// Omitted is how many bytes came before Body and were not kept.
	Omitted int64
}

// ArgumentError is a call that cannot be understood. Its text is for the agent.
type ArgumentError struct{ text string }

func (e *ArgumentError) Error() string { return e.text }

// BadArgument makes an ArgumentError.
func BadArgument(format string, args ...any) error {
	return &ArgumentError{fmt.Sprintf(format, args...)}
}

// MaxForeign bounds what other code says within an ArgumentError, in bytes.
const MaxForeign = 500

// Foreign makes an ArgumentError of what other code says, such as kubectl's. Text
// from the cluster can stand in it, and nothing marks an ArgumentError as data: it
// is one line of visible characters, of no more than most bytes.
func Foreign(err error, most int) error {
	lines := strings.FieldsFunc(plainText([]byte(err.Error())), func(r rune) bool { return r == '\n' })
	text := strings.Join(strings.Fields(strings.Join(lines, "; ")), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return &ArgumentError{text}
}

// All lists every tool, for a server that governs these clusters. With more
// than one, every tool about a cluster takes a cluster argument.
func All(clusters []string) []*Tool {
	var all []*Tool
	all = []*Tool{
		listClusters(clusters), listNamespaces(), listAPIResources(), explainResource(), checkAccess(func() []*Tool { return all }),
		listResources(), getResource(), describeResource(), listEvents(), getPodLogs(), topPods(), topNodes(),
		diagnoseWorkload(), getRolloutStatus(), getRolloutHistory(), diffManifest(),
		applyManifest(), createResource(), patchResource(), deleteResource(), setLabels(), setAnnotations(),
		scaleDeployment(), scaleStatefulSet(), restartRollout(), undoRollout(), pauseRollout(), resumeRollout(), setImage(),
		triggerCronJob(), suspendCronJob(), resumeCronJob(),
		cordonNode(), uncordonNode(), drainNode(), evictPod(), execInPod(),
		getOperation(), waitForOperation(), cancelOperation(), listOperations(),
	}
	for _, t := range all {
		t.finish(clusters)
	}
	return all
}

// define makes a tool from its typed input. In is a struct whose json tags name
// the arguments and whose jsonschema tags describe them; fields without
// omitempty are required. adjust adds what tags cannot say, such as ranges.
func define[In any](t Tool, adjust func(*jsonschema.Schema), plan func(ctx context.Context, r Reader, cluster string, in In) (Call, error), render func([]Response) (string, error)) *Tool {
	schema, err := jsonschema.For[In](nil)
	if err != nil {
		panic(fmt.Sprintf("tool %s: %v", t.Name, err)) // a programming error that every test meets
	}
	if adjust != nil {
		adjust(schema)
	}
	t.Schema, _ = json.Marshal(schema)
	t.render = render
	t.plan = func(ctx context.Context, r Reader, cluster string, args map[string]any) (Call, error) {
		var in In
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(args, &in); err != nil {
			return Call{}, BadArgument("%v", err)
		}
		return plan(ctx, r, cluster, in)
	}
	return &t
}

// maxText bounds an argument that has no bound of its own, in characters. The
// longest that somebody needs is the handle of a list that goes on. It is not in
// the schema that clients see: nobody comes near it, and everybody would read it.
const maxText = 4096

// finish adds the cluster argument where there is a choice, and compiles the schema.
func (t *Tool) finish(clusters []string) {
	t.clusters = clusters
	var schema jsonschema.Schema
	err := json.Unmarshal(t.Schema, &schema)
	if err == nil && len(clusters) > 1 && t.aboutCluster() {
		values := make([]any, len(clusters))
		for i, c := range clusters {
			values[i] = c
		}
		schema.Properties["cluster"] = &jsonschema.Schema{Type: "string", Enum: values, Description: "which cluster"}
		schema.Required = append(schema.Required, "cluster")
	}
	if err == nil {
		t.names = slices.Sorted(maps.Keys(schema.Properties))
		t.Schema, err = json.Marshal(&schema)
	}
	for _, property := range schema.Properties {
		if property.Type == "string" && property.MaxLength == nil {
			property.MaxLength = jsonschema.Ptr(maxText)
		}
	}
	if err == nil {
		t.resolved, err = schema.Resolve(nil)
	}
	if err != nil {
		panic(fmt.Sprintf("tool %s: %v", t.Name, err))
	}
}

// aboutCluster reports whether a call is about one cluster.
func (t *Tool) aboutCluster() bool { return len(t.Scopes) > 0 && !t.everywhere }

// MayRead refuses a request that the tool has not said it may make while it plans.
func (t *Tool) MayRead(a action.Action) error {
	if err := checkNames(a); err != nil {
		return err
	}
	if !a.ReadOnly() || !slices.ContainsFunc(t.Reads, func(s action.Scope) bool { return s.Covers(a) }) {
		return fmt.Errorf("tool %s asks for %s, which is outside its reads", t.Name, a)
	}
	return nil
}

// ReadOnly reports whether no call of this tool can change anything.
func (t *Tool) ReadOnly() bool {
	return t.Name != cancelName && !slices.ContainsFunc(t.Scopes, func(s action.Scope) bool { return !s.ReadOnly() })
}

// Destructive reports whether a call can take something away.
func (t *Tool) Destructive() bool {
	return slices.ContainsFunc(t.Scopes, func(s action.Scope) bool {
		return slices.Contains(s.Verbs, action.Delete) || slices.Contains(s.Verbs, action.Patch) || slices.Contains(s.Verbs, action.Update) ||
			s.Subresource == action.Eviction || s.Subresource == action.Exec
	})
}

// Idempotent reports whether the same call again changes nothing more. Create
// and patch together are an apply, which does not. A create alone can make one
// more object; a patch that the caller writes can add to a list once more. What
// hangs on the state of the cluster, such as going back to the revision before,
// is another change each time.
func (t *Tool) Idempotent() bool {
	return (t.ReadOnly() || t.Reads == nil) && !slices.ContainsFunc(t.Scopes, func(s action.Scope) bool {
		create, patch := slices.Contains(s.Verbs, action.Create), slices.Contains(s.Verbs, action.Patch)
		return create != patch && (create || slices.Contains(t.names, "patch"))
	})
}

// Decode reads the arguments, once and strictly: unknown, duplicate and
// case-variant keys, wrong types and values out of range are ArgumentErrors.
func (t *Tool) Decode(raw []byte) (map[string]any, error) {
	args := map[string]any{}
	if len(raw) == 0 || string(raw) == "null" {
		raw = []byte("{}")
	}
	strict, err := kjson.UnmarshalStrict(raw, &args)
	if err != nil {
		return nil, BadArgument("the arguments are not a JSON object: %v", err)
	}
	if len(strict) > 0 {
		return nil, BadArgument("%v", errors.Join(strict...))
	}
	if args == nil {
		args = map[string]any{}
	}
	if given, named := args["cluster"]; named && len(t.clusters) == 1 && t.aboutCluster() {
		// There is nothing to choose, and yet it is no mistake to name it.
		if given != t.clusters[0] {
			return nil, BadArgument("argument cluster: this server governs %s alone; leave cluster out", t.clusters[0])
		}
		delete(args, "cluster")
	}
	if kind, bounded := t.resolved.Schema().Properties["kind"]; bounded && kind.Enum != nil {
		if text, ok := args["kind"].(string); ok {
			args["kind"] = workloadKind(text)
		}
	}
	for name := range args {
		if !slices.Contains(t.names, name) {
			return nil, BadArgument("unknown argument %.100q; %s takes %s", name, t.Name, strings.Join(t.names, ", "))
		}
	}
	if t.resolved.Validate(args) != nil {
		return nil, BadArgument("%s", t.explain(args))
	}
	return args, nil
}

// explain says what does not fit the schema. The schema library's own words
// repeat the value, which can be large, or a Secret given in the wrong form.
func (t *Tool) explain(args map[string]any) string {
	schema := t.resolved.Schema()
	var wrong []string
	for _, name := range t.names {
		property := schema.Properties[name]
		value, given := args[name]
		number, isNumber := asNumber(value)
		text, isText := value.(string)
		switch {
		case !given && slices.Contains(schema.Required, name):
			wrong = append(wrong, fmt.Sprintf("argument %s is missing", name))
		case !given:
		case property.Type == "string" && !isText, property.Type == "boolean" && value != true && value != false,
			property.Type == "integer" && (!isNumber || number != math.Trunc(number)),
			(property.Type == "array" || property.Type == "object") && kindOf(value) != words[property.Type]:
			wrong = append(wrong, fmt.Sprintf("argument %s is %s where %s is expected", name, kindOf(value), words[property.Type]))
		case property.Enum != nil && !slices.Contains(property.Enum, value):
			wrong = append(wrong, fmt.Sprintf("argument %s is not one of %v", name, property.Enum))
		case isNumber && property.Minimum != nil && (number < *property.Minimum || number > *property.Maximum):
			wrong = append(wrong, fmt.Sprintf("argument %s is %s; %s is expected", name, numberText(number), rangeText(*property.Minimum, *property.Maximum)))
		case isText && property.MaxLength != nil && utf8.RuneCountInString(text) > *property.MaxLength:
			wrong = append(wrong, fmt.Sprintf("argument %s is longer than %d characters", name, *property.MaxLength))
		case property.Type == "array" || property.Type == "object":
			wrong = append(wrong, explainItems(name, property, value)...)
		}
	}
	if wrong == nil {
		return "the arguments do not fit the schema of " + t.Name
	}
	return strings.Join(wrong, "; ")
}

// explainItems says what does not fit of a list, or an object, of texts. The keys
// of an object are repeated: they are not values.
func explainItems(name string, property *jsonschema.Schema, value any) []string {
	var wrong []string
	size, least, most := 0, property.MinItems, property.MaxItems
	switch v := value.(type) {
	case []any:
		size = len(v)
		for i, item := range v {
			if _, isText := item.(string); !isText {
				wrong = append(wrong, fmt.Sprintf("argument %s, item %d is %s where text is expected", name, i+1, kindOf(item)))
			}
		}
	case map[string]any:
		size, least, most = len(v), property.MinProperties, property.MaxProperties
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if _, isText := v[key].(string); !isText {
				wrong = append(wrong, fmt.Sprintf("argument %s, %.100q is %s where text is expected", name, key, kindOf(v[key])))
			}
		}
	}
	switch {
	case most != nil && size > *most:
		return []string{fmt.Sprintf("argument %s has %d items; %d is the most that is taken", name, size, *most)}
	case least != nil && size < *least:
		return []string{fmt.Sprintf("argument %s has %d items; at least %d is expected", name, size, *least)}
	}
	return wrong[:min(len(wrong), 5)]
}

// noMaximum is the largest bound of a whole number that means that there is none:
// beyond it a number in JSON need not be whole (RFC 8259, section 6).
const noMaximum = 1 << 53

func rangeText(low, high float64) string {
	if high >= noMaximum {
		return "at least " + numberText(low)
	}
	return fmt.Sprintf("from %s to %s", numberText(low), numberText(high))
}

func numberText(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

var words = map[string]string{"string": "text", "boolean": "true or false", "integer": "a whole number", "array": "a list", "object": "an object"}

func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case string:
		return "text"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return "a number"
}

func asNumber(value any) (float64, bool) {
	switch n := value.(type) {
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

// Cluster is the cluster that a call with these arguments is about; "" where it
// is about none, or all.
func (t *Tool) Cluster(args map[string]any) string {
	if !t.aboutCluster() {
		return ""
	}
	if given, ok := args["cluster"].(string); ok {
		return given
	}
	return t.clusters[0]
}

// Plan says what the decoded arguments ask for. Every Action of the Plan lies
// within the tool's Scopes, and its names are names and not paths.
func (t *Tool) Plan(ctx context.Context, r Reader, args map[string]any) (Call, error) {
	args = maps.Clone(args)
	cluster := t.Cluster(args)
	given := t.Recordable(args)
	delete(args, "cluster")
	call, err := t.plan(ctx, r, cluster, args)
	if err != nil {
		return Call{}, err
	}
	call.Plan.Tool = t.Name
	call.Args = given
	for i := range call.Plan.Actions {
		a := &call.Plan.Actions[i]
		a.Cluster = cluster
		if err := checkNames(*a); err != nil {
			return Call{}, err
		}
		if !slices.ContainsFunc(t.Scopes, func(s action.Scope) bool { return s.Covers(*a) }) {
			return Call{}, fmt.Errorf("tool %s planned %s, which is outside its scopes", t.Name, a)
		}
	}
	return call, nil
}

// Render turns the answers into what the agent reads. The text still holds
// whatever the cluster said: gate masks it.
// Without an answer there is nothing to say.
func (t *Tool) Render(responses []Response) (string, error) {
	if len(responses) == 0 {
		return "", nil
	}
	return t.render(responses)
}

// payloadArguments are those that are too large and too secret for a record's
// arguments; what they say is recorded as the Plan's body.
var payloadArguments = []string{"manifest", "patch"}

// Recordable is what policy and the record see of decoded arguments.
func (t *Tool) Recordable(args map[string]any) map[string]any {
	args = maps.Clone(args)
	for _, name := range payloadArguments {
		if text, ok := args[name].(string); ok {
			args[name] = fmt.Sprintf("(%d bytes, recorded as the payload)", len(text))
		}
	}
	return args
}
