//! Walks the tree with data and writes text.

use std::rc::Rc;

use super::Fault;
use super::functions;
use super::parse::{Node, Operand, Pipe, Tree};
use super::value::Value;

/// `template` calls inside each other; each uses the stack.
const MAX_CALLS: usize = 50;

/// Runs a template.
///
/// # Errors
/// What Go would say too, and when more than `budget` steps and bytes would be needed: a template is a program by a stranger.
pub(super) fn run(tree: &Tree, data: Value, budget: u64) -> Result<String, Fault> {
    let mut run = Run { tree, out: String::new(), variables: vec![("$".into(), data.clone())], left: budget, calls: 0 };
    run.nodes(&tree.root, &data)?;
    Ok(run.out)
}

struct Run<'a> {
    tree: &'a Tree,
    out: String,
    /// Visible ones, the innermost last.
    variables: Vec<(Rc<str>, Value)>,
    /// Steps and bytes.
    left: u64,
    calls: usize,
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run<'_> {
    fn spend(&mut self, cost: usize) -> Result<(), Fault> {
        match self.left.checked_sub(cost as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Fault::new("takes too many steps")),
        }
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, Fault> {
        for node in nodes {
            self.spend(1)?;
            let visible = self.variables.len();
            let flow = match node {
                Node::Text(text) => {
                    self.spend(text.len())?;
                    self.out.push_str(text);
                    Flow::On
                }
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        let before = self.out.len();
                        value.print(&mut self.out);
                        self.spend(self.out.len() - before)?;
                    }
                    // What an action declares is visible up to the end of its list.
                    continue;
                }
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
                Node::If { condition, then, otherwise } => {
                    let branch = if self.pipe(condition, dot)?.truth() { then } else { otherwise };
                    self.inside(branch, dot)?
                }
                Node::With { subject, then, otherwise } => {
                    let value = self.pipe(subject, dot)?;
                    if value.truth() { self.inside(then, &value)? } else { self.inside(otherwise, dot)? }
                }
                Node::Range { over, each, otherwise } => self.range(over, each, otherwise, dot)?,
                Node::Template { name, argument, line } => {
                    self.call(name, argument.as_ref(), *line, dot)?;
                    Flow::On
                }
            };
            self.variables.truncate(visible);
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// A list whose variables end with it.
    fn inside(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, Fault> {
        let visible = self.variables.len();
        let flow = self.nodes(nodes, dot)?;
        self.variables.truncate(visible);
        Ok(flow)
    }

    fn range(&mut self, over: &Pipe, each: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow, Fault> {
        let subject = self.evaluate(over, dot)?;
        let pairs: Vec<(Value, Value)> = match &subject {
            Value::Nil => Vec::new(),
            Value::List(list) => {
                list.items.iter().enumerate().map(|(i, item)| (Value::Int(i as i64), item.clone())).collect()
            }
            Value::Map(map) => map.sorted().into_iter().map(|(key, value)| (Value::Text(key), value)).collect(),
            Value::Int(n) => {
                self.spend(usize::try_from(*n).unwrap_or(0))?;
                (0..*n).map(|i| (Value::Int(i), Value::Int(i))).collect()
            }
            other => return Err(Fault::at(over.line, format!("range cannot iterate over type {}", other.kind()))),
        };
        if pairs.is_empty() {
            return self.inside(otherwise, dot);
        }
        let visible = self.variables.len();
        if !over.assigns {
            self.variables.extend(over.variables.iter().map(|name| (name.as_str().into(), Value::Nil)));
        }
        for (key, value) in pairs {
            match &over.variables[..] {
                [name] => self.assign(name, value.clone(), over.line)?,
                [index, name] => {
                    self.assign(index, key, over.line)?;
                    self.assign(name, value.clone(), over.line)?;
                }
                _ => {}
            }
            self.spend(1)?;
            if self.inside(each, &value)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(visible);
        Ok(Flow::On)
    }

    fn call(&mut self, name: &str, argument: Option<&Pipe>, line: usize, dot: &Value) -> Result<(), Fault> {
        let tree = self.tree;
        let Some(nodes) = tree.defined.get(name) else {
            return Err(Fault::at(line, format!("template `{name}` is not defined")));
        };
        if self.calls == MAX_CALLS {
            return Err(Fault::at(line, format!("more than {MAX_CALLS} templates call each other")));
        }
        let data = argument.map_or(Ok(Value::Nil), |pipe| self.pipe(pipe, dot))?;
        let outside = std::mem::replace(&mut self.variables, vec![("$".into(), data.clone())]);
        self.calls += 1;
        self.nodes(nodes, &data)?;
        self.calls -= 1;
        self.variables = outside;
        Ok(())
    }

    /// Evaluates, and gives the value to the variables.
    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        let value = self.evaluate(pipe, dot)?;
        for name in &pipe.variables {
            if pipe.assigns {
                self.assign(name, value.clone(), pipe.line)?;
            } else {
                self.variables.push((name.as_str().into(), value.clone()));
            }
        }
        Ok(value)
    }

    fn assign(&mut self, name: &str, value: Value, line: usize) -> Result<(), Fault> {
        let variable = self.variables.iter_mut().rev().find(|(known, _)| &**known == name);
        let Some((_, old)) = variable else {
            return Err(Fault::at(line, format!("undefined variable `{name}`")));
        };
        *old = value;
        Ok(())
    }

    fn evaluate(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        let mut last = None;
        for command in &pipe.commands {
            self.spend(1)?;
            last = Some(self.command(command, last, dot, pipe.line)?);
        }
        Ok(last.unwrap_or(Value::Nil))
    }

    fn command(&mut self, command: &[Operand], piped: Option<Value>, dot: &Value, line: usize) -> Result<Value, Fault> {
        let (first, rest) = command.split_first().expect("the parser makes no empty commands");
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err(Fault::at(line, "something that is no function was given arguments"));
            }
            return self.operand(first, dot, line);
        };
        if name == "and" || name == "or" {
            return self.logical(name == "and", rest, piped, dot, line);
        }
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            arguments.push(self.operand(operand, dot, line)?);
        }
        arguments.extend(piped);
        let function = functions::find(name).expect("the parser knows it");
        let value = function(&arguments).map_err(|text| Fault::at(line, format!("{name}: {text}")))?;
        if let Value::Text(text) = &value {
            self.spend(text.len())?;
        }
        Ok(value)
    }

    /// The first operand that decides, or the last one; those behind it are not evaluated.
    fn logical(
        &mut self,
        and: bool,
        rest: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        line: usize,
    ) -> Result<Value, Fault> {
        let mut value = None;
        for operand in rest {
            let now = self.operand(operand, dot, line)?;
            if now.truth() != and {
                return Ok(now);
            }
            value = Some(now);
        }
        piped.or(value).ok_or_else(|| Fault::at(line, "`and` and `or` want arguments"))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value, line: usize) -> Result<Value, Fault> {
        self.spend(1)?;
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Nil => Value::Nil,
            Operand::Bool(is) => Value::Bool(*is),
            Operand::Int(int) => Value::Int(*int),
            Operand::Float(float) => Value::Float(*float),
            Operand::Text(text) => text.as_str().into(),
            Operand::Field(names) => fields(dot.clone(), names, line)?,
            Operand::Variable(name, names) => {
                let variable = self.variables.iter().rev().find(|(known, _)| &**known == name);
                let (_, value) = variable.ok_or_else(|| Fault::at(line, format!("undefined variable `{name}`")))?;
                fields(value.clone(), names, line)?
            }
            Operand::Group(pipe, names) => {
                let visible = self.variables.len();
                let value = self.pipe(pipe, dot)?;
                self.variables.truncate(visible);
                fields(value, names, line)?
            }
            Operand::Function(_) => self.command(std::slice::from_ref(operand), None, dot, line)?,
        })
    }
}

/// Follows field names. A key that a map has not is nil, a field that a struct has not is an error.
fn fields(mut value: Value, names: &[String], line: usize) -> Result<Value, Fault> {
    for name in names {
        value = match &value {
            Value::Map(map) => map.get(name).cloned().unwrap_or(Value::Nil),
            Value::Record(record) => match record.fields.iter().find(|field| field.name == name) {
                Some(field) => field.value.clone(),
                None => return Err(Fault::at(line, format!("there is no field `{name}`"))),
            },
            Value::Nil => return Err(Fault::at(line, format!("`.{name}` of nil"))),
            other => return Err(Fault::at(line, format!("`.{name}` of a value of type {}", other.kind()))),
        };
    }
    Ok(value)
}
