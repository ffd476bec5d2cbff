package tools

import (
	"context"
	"errors"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
)

// MaxWait is how long a call may wait for a person. Clients give up on a silent
// call after about a minute.
const MaxWait = 45 * time.Second

// cancelName is the one tool that sends nothing to a cluster and changes
// something all the same: whether an operation still waits.
const cancelName = "cancel_operation"

type operationInput struct {
	Op string `json:"op" jsonschema:"the op of an earlier answer"`
}

func getOperation() *Tool {
	return operationTool(Tool{
		Name:        "get_operation",
		Title:       "Get an operation",
		Description: "Says where one of your earlier calls stands.",
	}, nil, func(in operationInput) OperationCall { return OperationCall{Verb: GetOperation, ID: in.Op} })
}

type waitInput struct {
	Op      string `json:"op" jsonschema:"the op of an earlier answer"`
	Seconds int64  `json:"seconds,omitempty" jsonschema:"at most this long (default 45)"`
}

func waitForOperation() *Tool {
	return operationTool(Tool{
		Name:        "wait_for_operation",
		Title:       "Wait for an operation",
		Description: "Waits until one of your earlier calls is decided and done, or the time is over. Call it again to wait longer.",
	}, func(s *jsonschema.Schema) { between(s, "seconds", 1, MaxWait.Seconds()) }, func(in waitInput) OperationCall {
		wait := time.Duration(in.Seconds) * time.Second
		if wait == 0 {
			wait = MaxWait
		}
		return OperationCall{Verb: WaitOperation, ID: in.Op, Wait: wait}
	})
}

func cancelOperation() *Tool {
	return operationTool(Tool{
		Name:        cancelName,
		Title:       "Cancel an operation",
		Description: "Withdraws one of your earlier calls that still waits for approval.",
	}, nil, func(in operationInput) OperationCall { return OperationCall{Verb: CancelOperation, ID: in.Op} })
}

type listOperationsInput struct {
	OpenOnly bool `json:"open_only,omitempty" jsonschema:"only those that are not over"`
}

func listOperations() *Tool {
	return operationTool(Tool{
		Name:        "list_operations",
		Title:       "List operations",
		Description: "Lists your latest calls that changed something, were refused or had to ask, newest first.",
	}, nil, func(in listOperationsInput) OperationCall {
		return OperationCall{Verb: ListOperations, OpenOnly: in.OpenOnly}
	})
}

// operationTool defines a tool that asks about an operation and sends nothing.
func operationTool[In any](t Tool, adjust func(*jsonschema.Schema), call func(In) OperationCall) *Tool {
	return define(t, adjust, func(_ context.Context, _ Reader, _ string, in In) (Call, error) {
		c := call(in)
		return Call{Operation: &c}, nil
	}, func([]Response) (string, error) {
		return "", errors.New("rendering an operation: nothing was sent")
	})
}
