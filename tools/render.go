package tools

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// renderTable writes a server-side Table as aligned columns, the columns of
// default width only, as kubectl get does.
func renderTable(responses []Response) (string, error) {
	r := responses[0]
	var table metav1.Table
	if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &table); err != nil {
		return "", fmt.Errorf("reading the table: %w", err)
	}
	if table.Kind != "Table" {
		return "", fmt.Errorf("reading the table: the API server answered with %s", table.Kind)
	}
	if len(table.Rows) == 0 {
		return noneFound(r.Action), nil
	}
	var rows rows
	namespaces := r.Action.Resource.Namespaced && r.Action.Namespace == ""
	var cells []string
	if namespaces {
		cells = append(cells, "NAMESPACE")
	}
	for _, column := range table.ColumnDefinitions {
		if column.Priority == 0 {
			cells = append(cells, strings.ToUpper(column.Name))
		}
	}
	rows.add(cells)
	for _, row := range table.Rows {
		cells = cells[:0]
		if namespaces {
			cells = append(cells, rowNamespace(row))
		}
		for i, cell := range row.Cells {
			if i < len(table.ColumnDefinitions) && table.ColumnDefinitions[i].Priority == 0 {
				cells = append(cells, cellText(cell))
			}
		}
		if !rows.add(cells) {
			break
		}
	}
	return rows.list(len(table.Rows), table.ListMeta), nil
}

func noneFound(a action.Action) string {
	where := ""
	if a.Namespace != "" {
		where = " in namespace " + a.Namespace
	}
	return "No " + a.Resource.GroupResource() + " found" + where + "."
}

// rows are lines of cells that become aligned columns. The first is the head.
type rows struct {
	b     strings.Builder
	w     *tabwriter.Writer
	bytes int
}

// add takes one row, and reports whether one more could be shown.
func (r *rows) add(cells []string) bool {
	if r.w == nil {
		r.w = tabwriter.NewWriter(&r.b, 0, 0, 2, ' ', 0)
	}
	n, _ := fmt.Fprintln(r.w, strings.Join(cells, "\t")) // into memory
	r.bytes += n
	return r.bytes <= maxBytes
}

// table is as many whole lines of what was added as may be shown, and how many rows they are.
func (r *rows) table() (text string, shown int) {
	r.w.Flush()
	text = r.b.String()
	if len(text) > maxBytes {
		text = text[:strings.LastIndexByte(text[:maxBytes], '\n')+1]
	}
	return text, strings.Count(text, "\n") - 1
}

// list is the table of what one list request has fetched, and says how much of all it is.
func (r *rows) list(fetched int, meta metav1.ListMeta) string {
	text, shown := r.table()
	if shown < fetched {
		text += fmt.Sprintf("Cut at %d of the %d fetched: narrow with label_selector, field_selector or limit.\n", shown, fetched)
	}
	if meta.RemainingItemCount != nil && *meta.RemainingItemCount > 0 {
		text += fmt.Sprintf("%d of %d shown.", shown, int64(fetched)+*meta.RemainingItemCount)
	} else if meta.Continue != "" {
		text += fmt.Sprintf("%d shown, and there are more.", shown)
	}
	if meta.Continue != "" && shown == fetched { // else it would leave out the rows that were cut
		text += " Narrow with label_selector or field_selector, or go on with continue: " + meta.Continue + "\n"
	}
	return text
}

// rowNamespace reads the namespace from the row's metadata, which the server
// sends as a PartialObjectMetadata when it is asked for tables over all namespaces.
func rowNamespace(row metav1.TableRow) string {
	var partial metav1.PartialObjectMetadata
	if err := kjson.UnmarshalCaseSensitivePreserveInts(row.Object.Raw, &partial); err != nil {
		return "?"
	}
	return partial.Namespace
}

// cellText is a cell on one line; one without a value is empty, as in kubectl get.
func cellText(cell any) string {
	if cell == nil {
		return ""
	}
	text := strings.Join(strings.Fields(fmt.Sprint(cell)), " ")
	if utf8.RuneCountInString(text) > maxCell {
		text = string([]rune(text)[:maxCell]) + "..." // every row is padded to the widest
	}
	return text
}

// maxCell bounds one cell of a table, in characters.
const maxCell = 120

// renderList writes a table: the API server's own, or one of the fields asked for.
func renderList(responses []Response) (string, error) {
	r := responses[0]
	if r.Action.Options.Fields == nil {
		return renderTable(responses)
	}
	if r.Omitted > 0 {
		return "", BadArgument("the objects are %d bytes together, more than the %d that are read for fields: give a smaller limit", int64(len(r.Body))+r.Omitted, maxFetched)
	}
	var list struct {
		Metadata metav1.ListMeta  `json:"metadata"`
		Items    []map[string]any `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &list); err != nil {
		return "", fmt.Errorf("reading the list: %w", err)
	}
	columns, err := parseFields(r.Action.Options.Fields)
	if err != nil {
		return "", err
	}
	if len(list.Items) == 0 {
		return noneFound(r.Action), nil
	}
	head := []string{"NAME"}
	for _, column := range columns {
		head = append(head, strings.ToUpper(column.path))
	}
	namespaces := r.Action.Resource.Namespaced && r.Action.Namespace == ""
	if namespaces {
		head = slices.Insert(head, 0, "NAMESPACE")
	}
	var rows rows
	rows.add(head)
	for _, object := range list.Items {
		// Masked before anything is selected: no path leads past it.
		object = audit.MaskObject(object, isSecret(r.Action))
		meta, _ := object["metadata"].(map[string]any)
		cells := []string{cellText(meta["name"])}
		for _, column := range columns {
			value, err := column.of(object)
			if err != nil {
				return "", err
			}
			cells = append(cells, fieldText(value))
		}
		if namespaces {
			cells = slices.Insert(cells, 0, cellText(meta["namespace"]))
		}
		if !rows.add(cells) {
			break
		}
	}
	return rows.list(len(list.Items), list.Metadata), nil
}

func isSecret(a action.Action) bool { return a.Resource.GroupResource() == "secrets" }

// renderObject writes one object as YAML, with secret values masked and without
// what nobody reads.
func renderObject(responses []Response) (string, error) {
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(responses[0].Body, &object); err != nil {
		return "", fmt.Errorf("reading the object: %w", err)
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
		if annotations, ok := meta["annotations"].(map[string]any); ok {
			delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	object = audit.MaskObject(object, isSecret(responses[0].Action))
	paths := responses[0].Action.Options.Fields
	if paths == nil {
		text, err := yamlText(object)
		return cutEnd(text, "name what you need in fields, such as metadata.labels"), err
	}
	selected, err := parseFields(paths)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range selected {
		value, err := f.of(object)
		if err != nil {
			return "", err
		}
		text, err := yamlText(map[string]any{f.path: value})
		if err != nil {
			return "", err
		}
		b.WriteString(text)
	}
	return cutEnd(b.String(), "name less in fields"), nil
}

func yamlText(value any) (string, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(value); err != nil {
		return "", fmt.Errorf("writing YAML: %w", err)
	}
	return b.String(), nil
}

// cutEnd bounds a text and says what was left out.
func cutEnd(text, how string) string { return cutAt(text, maxBytes, how) }

func cutAt(text string, most int, how string) string {
	if len(text) <= most {
		return text
	}
	end := most
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%s\n(the first %d of %d bytes; to see less: %s)\n", text[:end], end, len(text), how)
}

// renderChange says in one line an Action what became of the object.
func renderChange(verb string) func([]Response) (string, error) {
	return func(responses []Response) (string, error) {
		lines := make([]string, len(responses))
		for i, r := range responses {
			target := r.Action.Name
			if target == "" { // the API server has made it up
				var created metav1.PartialObjectMetadata
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &created); err != nil {
					return "", fmt.Errorf("reading the created object: %w", err)
				}
				target = created.Name
			}
			if r.Action.Namespace != "" {
				target = r.Action.Namespace + "/" + target
			}
			lines[i] = fmt.Sprintf("%s %s %s", r.Action.Resource.GroupResource(), target, verb)
			if r.Action.Subresource == "scale" {
				var scale struct {
					Spec struct {
						Replicas int64 `json:"replicas"`
					} `json:"spec"`
				}
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &scale); err != nil {
					return "", fmt.Errorf("reading the scale: %w", err)
				}
				lines[i] += fmt.Sprintf(" to %d replicas", scale.Spec.Replicas)
			}
		}
		return strings.Join(lines, "\n"), nil
	}
}
